"""The demo's log and table over a real store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_results import make_policy

from bond_core.config import BondConfig, load_config
from bond_core.holdout import split_of
from bond_core.store import Store, open_store
from bond_core.types import Arm, Message, PolicyState
from bond_demo.seeding import record_of
from bond_demo.snapshot import take_snapshot


def make_row(scores: list[float]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "Where is my lamp?"}],
        "prompt_token_ids": [1, 2, 3],
        "candidates": [
            {
                "token_ids": [7, 8 + place],
                "text": f"answer {place}",
                "finish_reason": "stop",
                "logprob": -3.5,
                "score": score,
            }
            for place, score in enumerate(scores)
        ],
    }


@pytest.fixture
def config(tmp_path: Path) -> BondConfig:
    return load_config(
        flags={
            "model": {"path": tmp_path / "policy", "name": "demo"},
            "scorer": {"type": "function", "function": "bond_demo.settings:gold_rewards"},
            "sampling": {"max_tokens": 80},
            "arms": {"best_of": 3},
            "data_dir": tmp_path / "data",
        },
        environ={},
    )


@pytest.fixture
async def store(config: BondConfig) -> Store:
    return await open_store(config.store_url)


def test_a_row_becomes_a_best_of_n_answer_of_the_reference(config: BondConfig) -> None:
    record = record_of(make_row([0.5, 2.0, 2.0]), 4, config, 1000.0)
    assert (record.arm, record.version, record.best_of) == (Arm.BON, "v0000", 3)
    assert (record.chosen, record.score) == ((1,), 2.0)
    assert (record.source, record.may_train, record.standard_sampling) == ("seed", True, True)
    assert record.split is split_of([Message("user", "Where is my lamp?")])
    assert record.candidates[2].completion.token_ids == (7, 10)
    assert record.id == record_of(make_row([0.0]), 4, config, 5.0).id
    assert record.id != record_of(make_row([0.0]), 5, config, 5.0).id


def test_another_standard_distribution_makes_the_rows_non_standard(config: BondConfig) -> None:
    warmer = config.model_copy(
        update={"sampling": config.sampling.model_copy(update={"temperature": 0.5})}
    )
    assert record_of(make_row([1.0]), 0, warmer, 0.0).standard_sampling is False


async def test_seeded_rows_are_winners_and_not_traffic(config: BondConfig, store: Store) -> None:
    rows = [record_of(make_row([0.5, 2.0, float(place)]), place, config, 9.0) for place in range(3)]
    await store.completions.record_many(rows)
    winners = await store.completions.winners(3, 10)
    assert {row.score for row in winners} == {2.0}
    assert len(winners) == 3
    snapshot = await take_snapshot(store, config, since=0.0)
    assert snapshot.log_rows == 3
    assert snapshot.arms[Arm.BON].requests == 0
    await store.close()


async def test_the_snapshot_follows_traffic_promotion_and_window(
    config: BondConfig, store: Store
) -> None:
    base = replace(record_of(make_row([1.0]), 0, config, 50.0), source="traffic", latency_s=0.25)
    answers = [
        replace(base, id="old", created_at=10.0),
        replace(base, id="bon", best_of=1, score=3.0),
        replace(base, id="early", arm=Arm.DISTILLED, score=-1.0),
        replace(base, id="failed", arm=Arm.DISTILLED, status="failed", chosen=(), score=None),
        replace(
            base, id="late", arm=Arm.DISTILLED, version="v0001", score=2.0, log_ratio=0.5,
        ),
    ]  # fmt: skip
    await store.completions.record_many(answers)
    before = await take_snapshot(store, config, since=20.0)
    assert (before.promotions, before.live_version, before.training_state) == (
        0, "v0000", "starting",
    )  # fmt: skip
    await store.policies.insert(
        make_policy("v0001", PolicyState.CHALLENGER, win_rate_vs_reference=0.75)
    )
    await store.policies.activate("v0001", "gain")
    after = await take_snapshot(store, config, since=20.0)
    assert (after.promotions, after.live_version, after.rejections) == (1, "v0001", 0)
    assert (after.arms[Arm.BON].requests, after.arms[Arm.BON].reward_mean) == (1, 3.0)
    distilled = after.arms[Arm.DISTILLED]
    assert (distilled.requests, distilled.failed) == (3, 1)
    assert (distilled.reward_mean, distilled.kl_nats, distilled.win_rate) == (2.0, 0.5, 0.75)
    assert distilled.latency_p50_ms == 250.0
    assert after.live is not None
    assert (after.live.requests, after.live.reward_mean) == (1, 2.0)
    assert (await take_snapshot(store, config, since=60.0)).arms[Arm.BON].requests == 0
    await store.close()
