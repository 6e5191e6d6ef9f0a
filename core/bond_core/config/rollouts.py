"""Where the trainer's rollouts come from, and how far they may be from what is learned."""

from typing import Literal

from pydantic import Field

from bond_core.config.base import Section


class RolloutsConfig(Section):
    """What answers the trainer's prompts, in training and in evaluations."""

    engine: Literal["auto", "own", "served"] = "auto"
    """`own` is the learner's model in the trainer's process, `served` the servers of `engine.urls`
    (or `engine.training_urls`). `auto` is `served` if `engine.type` is `vllm` and the prompts come
    from the log, else `own`."""
    max_staleness: int = Field(default=0, ge=0)
    """Of served rollouts: updates by which the published policy may be behind the learner's. It is
    published anew before a step that would exceed this, and before every evaluation."""
    max_importance_ratio: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    """Of served rollouts: a policy sample counts by its probability under the learner over that
    under the server, and at most by this much."""
    mismatch_alarm_nats: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Of served rollouts: KL per token from the server's policy to the learner's (`mismatch_k3`)
    above which the trainer warns."""
    max_pause_s: float = Field(default=1800.0, ge=0, allow_inf_nan=False)
    """How long training waits for servers that do not answer, until it ends with a checkpoint."""
