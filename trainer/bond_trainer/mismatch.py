"""The alarm for servers that sample from another law than is learned."""

from collections.abc import Mapping

from bond_core.config import RolloutsConfig


def mismatch_alarm(
    metrics: Mapping[str, float], config: RolloutsConfig, staleness: int
) -> str | None:
    """What to say of a step's mismatch; None while it is within the limit, and of steps that have
    none."""
    found = metrics.get("mismatch_k3", 0.0)
    if found <= config.mismatch_alarm_nats:
        return None
    cause = (
        f"the published policy was {staleness} updates old (trainer.rollouts.max_staleness); or "
        if staleness
        else ""
    )
    return (
        f"the servers sample from another law than the learner's: {found:.2g} nats per token, the "
        f"limit (trainer.rollouts.mismatch_alarm_nats) is {config.mismatch_alarm_nats:g}: {cause}"
        "vLLM computes with other weights, another dtype or without --logprobs-mode "
        "processed_logprobs"
    )
