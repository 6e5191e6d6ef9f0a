"""Evaluations, the trainer's state, and leases."""

import asyncio
from dataclasses import replace

from databases import OpenStoreAt

from bond_core.holdout import Split
from bond_core.store import EvaluationRecord, Store, TrainingRecord


def evaluation(version: str, step: int) -> EvaluationRecord:
    return EvaluationRecord(
        version=version,
        step=step,
        split=Split.REPORT,
        created_at=1000.25 + step,
        metrics={"reward_mean": 0.5 * step, "n_q": float("inf"), "by_prompt": [1, 2.5, None]},
    )


async def test_evaluations_are_kept_in_order(store: Store) -> None:
    records = [evaluation("v0001", 10), evaluation("v0002", 20), evaluation("v0001", 30)]
    for record in records:
        await store.evaluations.insert(record)
    assert await store.evaluations.of("v0001") == [records[0], records[2]]
    assert await store.evaluations.of("v0003") == []
    assert await store.evaluations.latest(2) == [records[2], records[1]]


async def test_a_report_replaces_the_one_before(store: Store) -> None:
    assert await store.training.latest() is None
    first = TrainingRecord(
        run_id="run-1",
        state="training",
        step=3,
        started_at=1000.0,
        heartbeat_at=1001.5,
        metrics={"loss": -0.25, "kl": float("nan")},
        counts={"seen": 10, "duplicates": 2},
    )
    await store.training.report(replace(first, metrics={"loss": -0.25}))
    later = replace(first, state="failed", step=4, heartbeat_at=1002.0, error="out of memory")
    await store.training.report(replace(later, metrics={}, counts={}))
    assert await store.training.latest() == replace(later, metrics={}, counts={})

    await store.training.report(replace(first, run_id="run-0", heartbeat_at=1001.0))
    newest = await store.training.latest()
    assert newest is not None
    assert newest.run_id == "run-1"
    await store.training.report(replace(first, run_id="run-0", heartbeat_at=1003.0))
    newest = await store.training.latest()
    assert newest is not None
    assert newest.run_id == "run-0"
    assert newest.counts == {"seen": 10, "duplicates": 2}
    assert newest.metrics["kl"] != newest.metrics["kl"]  # NaN came back


async def test_a_lease_has_one_holder_until_it_ends(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    now = 1000.0
    one = await open_store_at(database_url, clock=lambda: now)
    other = await open_store_at(database_url, clock=lambda: now)

    assert await one.leases.acquire("controller", "one", 10.0)
    assert not await other.leases.acquire("controller", "other", 10.0)
    assert await other.leases.acquire("another", "other", 10.0)
    now = 1005.0
    assert await one.leases.acquire("controller", "one", 10.0)  # renewed until 1015
    now = 1014.0
    assert not await other.leases.acquire("controller", "other", 10.0)
    now = 1015.0
    assert await other.leases.acquire("controller", "other", 10.0)
    assert not await one.leases.acquire("controller", "one", 10.0)

    await one.leases.release("controller", "one")  # not its own any more
    assert not await one.leases.acquire("controller", "one", 10.0)
    await other.leases.release("controller", "other")
    assert await one.leases.acquire("controller", "one", 10.0)


async def test_of_many_who_want_a_lease_one_gets_it(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    stores = [await open_store_at(database_url) for _ in range(3)]
    won = await asyncio.gather(
        *(stores[i % 3].leases.acquire("controller", f"holder {i}", 60.0) for i in range(9))
    )
    assert won.count(True) == 1
