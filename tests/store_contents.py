"""What a trainer leaves in a store: reports of its run, and versions with the gate's verdict."""

import time
from typing import Any

from stored import policy

from bond_core.store import PolicyRecord, TrainingRecord
from bond_core.types import PolicyState


def a_run(state: Any, step: int, heartbeat_at: float | None = None) -> TrainingRecord:
    """A report, of now unless said otherwise."""
    now = time.time() if heartbeat_at is None else heartbeat_at
    return TrainingRecord(
        run_id="run",
        state=state,
        step=step,
        started_at=now - 60,
        heartbeat_at=now,
        metrics={"train/reward_policy_mean": 0.5, "train/loss": 2.0, "eval/version": "v0001"},
        counts={"rows": 90, "accepted": 80, "too_long": 10},
    )


def verdict(*failed: str, reward: float = 1.25, kl: float = 0.75) -> dict[str, Any]:
    """What the gate saw of a version; it is refused for the checks that failed."""
    names = ("reward", "kl", "length")
    return {
        "reward_mean": reward,
        "kl_nats": kl,
        "gate": {
            "passed": not failed,
            "reward_gain": reward - 1.0,
            "checks": [{"name": name, "passed": name not in failed} for name in names],
        },
    }


def refused(version: str, *failed: str, **figures: float) -> PolicyRecord:
    """A version that the gate refused for these checks."""
    seen = verdict(*failed, **figures)
    return policy(version, state=PolicyState.REJECTED, evaluation=seen)
