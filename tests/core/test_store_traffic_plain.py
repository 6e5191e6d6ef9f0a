"""Requests that mix a strategy and a policy stay out of the arms' figures."""

from dataclasses import replace
from pathlib import Path

from stored import completion

from bond_core.store import open_store
from bond_core.types import Arm


async def test_best_of_n_of_the_distilled_policy_does_not_flatter_its_arm(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path / 'bond.db'}")
    try:
        single = completion("one", arm=Arm.DISTILLED, best_of=1, n=1, score=1.0)
        await store.completions.record(single)
        await store.completions.record(replace(single, id="other", best_of=16, score=9.0))
        [summary] = await store.completions.summarise(source=single.source)
    finally:
        await store.close()
    assert (summary.requests, summary.score_mean) == (1, 1.0)
