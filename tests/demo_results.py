"""Made-up results of a run: snapshots, samples and versions with known numbers."""

import numpy as np

from bond_core.store.records import ArmSummary, PolicyRecord
from bond_core.types import Arm, PolicyState
from bond_demo.measures import FreshSamples
from bond_demo.snapshot import ArmTraffic, Snapshot


def make_traffic(**changes: object) -> ArmTraffic:
    values: dict[str, object] = {
        "requests": 40, "failed": 0, "reward_mean": 1.25, "gold_mean": 0.5, "kl_nats": 0.75,
        "win_rate": 0.8, "tokens_per_answer": 31.4, "latency_p50_ms": 41.6,
        "latency_p95_ms": 90.2,
    }  # fmt: skip
    return ArmTraffic(**{**values, **changes})  # type: ignore[arg-type]


def make_snapshot(**changes: object) -> Snapshot:
    values: dict[str, object] = {
        "at": 1000.0,
        "arms": {
            Arm.REFERENCE: make_traffic(requests=12, reward_mean=0.1, kl_nats=0.0, win_rate=0.5),
            Arm.BON: make_traffic(
                requests=30, failed=2, kl_nats=1.2044, kl_is_bound=True, win_rate=8 / 9,
                win_rate_is_bound=True, tokens_per_answer=250.0,
            ),
            Arm.DISTILLED: make_traffic(),
        },
        "live": make_traffic(requests=9, win_rate=None),
        "live_version": "v0002",
        "best_of": 8,
        "promotions": 2,
        "rejections": 1,
        "training_state": "training",
        "training_step": 120,
        "training_error": None,
        "log_rows": 9000,
    }  # fmt: skip
    return Snapshot(**{**values, **changes})  # type: ignore[arg-type]


def make_samples(seed: int = 0, prompts: int = 40, shift: float = 1.0) -> FreshSamples:
    """Normal rewards: the distilled policy's are higher by `shift`; gold is half the proxy."""
    generator = np.random.default_rng(seed)
    reference = generator.normal(size=(prompts, 16))
    distilled = generator.normal(loc=shift, size=(prompts, 4))
    return FreshSamples(
        version="v0002",
        reference_proxy_PK=reference,
        reference_gold_PK=reference / 2,
        distilled_proxy_PS=distilled,
        distilled_gold_PS=distilled / 2,
        distilled_kl_PS=np.full((prompts, 4), 0.875),
    )


def make_policy(version: str, state: PolicyState, **evaluation: object) -> PolicyRecord:
    return PolicyRecord(
        version=version, state=state, path=f"/adapters/{version}", parent=None,
        step=50 * int(version[1:]), created_at=float(version[1:]), updated_at=0.0,
        evaluation=evaluation,
    )  # fmt: skip


def make_summary(arm: Arm, version: str | None = None, **changes: object) -> ArmSummary:
    values: dict[str, object] = {
        "arm": arm, "version": version, "requests": 10, "failed": 0, "score_mean": 1.0,
        "gold_mean": 2.0, "log_ratio_mean": None, "tokens_per_answer": 30.0,
        "latency_p50_s": 0.05, "latency_p95_s": 0.1,
    }  # fmt: skip
    return ArmSummary(**{**values, **changes})  # type: ignore[arg-type]
