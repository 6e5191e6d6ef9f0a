"""What the trainer may take from the log, and that two never take the same."""

import asyncio
import time

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio
from databases import OpenStoreAt, PostgresServer
from stored import best_of_n, candidate, completion

from bond_core.holdout import Split
from bond_core.store import CompletionRecord, Store
from bond_core.store.claims import Lease, claim_learnable
from bond_core.types import Arm


class Clock:
    """Unix seconds that stand still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ids(records: list[CompletionRecord]) -> list[str]:
    return [record.id for record in records]


async def test_only_rows_that_may_be_learned_from_are_claimed(store: Store) -> None:
    await store.completions.record_many(
        [
            completion("good"),
            completion("no consent", may_train=False),
            completion("other sampling", standard_sampling=False),
            completion("held out for the gate", split=Split.GATE),
            completion("held out for the report", split=Split.REPORT),
            completion("failed", status="failed"),
            completion("cancelled", status="cancelled"),
            completion("degraded", degraded="deadline"),
            completion("no content", messages=()),
            best_of_n("bon", 4),
            completion("distilled", arm=Arm.DISTILLED, version="v0003"),
        ]
    )
    claimed = await store.completions.claim("a", 10, 60.0, after_seq=0, exclude=())
    assert ids(claimed) == ["good", "bon", "distilled"]
    assert claimed[1].candidates == best_of_n("bon", 4).candidates


async def test_claims_are_exclusive_until_they_expire(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    clock = Clock()
    one = await open_store_at(database_url, clock=clock)
    other = await open_store_at(database_url, clock=clock)
    await one.completions.record_many(completion(f"row {i}") for i in range(5))

    assert ids(await one.completions.claim("a", 2, 60.0, after_seq=0, exclude=())) == [
        "row 0",
        "row 1",
    ]
    assert ids(await other.completions.claim("b", 2, 60.0, after_seq=0, exclude=())) == [
        "row 2",
        "row 3",
    ]
    clock.now += 30  # the holder's own rows are given again, and renewed
    renewed = await one.completions.claim("a", 9, 60.0, after_seq=0, exclude=())
    assert ids(renewed) == ["row 0", "row 1", "row 4"]

    clock.now += 30  # b's leases end now, a's were renewed
    assert ids(await one.completions.claim("c", 9, 60.0, after_seq=0, exclude=())) == [
        "row 2",
        "row 3",
    ]
    clock.now += 30
    assert ids(await other.completions.claim("b", 9, 60.0, after_seq=0, exclude=())) == [
        "row 0",
        "row 1",
        "row 4",
    ]


async def test_many_claimants_at_once_share_out_every_row(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    stores = [await open_store_at(database_url) for _ in range(3)]
    await stores[0].completions.record_many(completion(f"row {i}") for i in range(90))

    async def learner(number: int) -> list[str]:
        taken: list[str] = []
        for _ in range(12):
            rows = await stores[number % 3].completions.claim(
                f"learner {number}", len(taken) + 5, 60.0, after_seq=0, exclude=()
            )
            taken = ids(rows)
        return taken

    taken = await asyncio.gather(*(learner(number) for number in range(6)))
    together = [row for rows in taken for row in rows]
    assert len(together) == len(set(together))
    assert set(together) == {f"row {i}" for i in range(90)}


async def test_a_claim_under_way_hides_only_the_rows_that_it_takes(
    postgres: PostgresServer, open_store_at: OpenStoreAt
) -> None:
    url = postgres.migrated()
    store = await open_store_at(url)
    await store.completions.record_many(completion(f"row {i}") for i in range(9))
    lease = Lease("a", now=time.time(), until=time.time() + 60)
    engine = sa.ext.asyncio.create_async_engine(url)
    try:
        async with engine.begin() as connection:
            first = await connection.run_sync(claim_learnable, lease, 3, 0, frozenset({2}))
            others = await store.completions.claim("b", 4, 60.0, after_seq=0, exclude=())
    finally:
        await engine.dispose()

    assert first == [1, 3, 4]
    assert [row.seq for row in others] == [2, 5, 6, 7]


async def test_consumed_rows_are_left_out_however_many(store: Store) -> None:
    await store.completions.record_many(completion(f"row {i}") for i in range(2500))
    consumed = set(range(101, 2400))

    claimed = await store.completions.claim("a", 30, 60.0, after_seq=95, exclude=consumed)

    assert [row.seq for row in claimed] == [*range(96, 101), *range(2400, 2425)]
    everything = await store.completions.claim("a", 5000, 60.0, after_seq=0, exclude=consumed)
    assert len(everything) == 2500 - len(consumed)


async def test_nothing_to_claim(store: Store) -> None:
    await store.completions.record(completion("only"))
    assert await store.completions.claim("a", 5, 60.0, after_seq=1, exclude=()) == []
    assert await store.completions.claim("a", 5, 60.0, after_seq=0, exclude={1}) == []
    assert await store.completions.claim("a", 0, 60.0, after_seq=0, exclude=()) == []


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("a cut candidate", {"candidates": tuple(candidate(i) for i in range(7))}),
        ("an unscored one", {"candidates": tuple(candidate(i, score=None) for i in range(8))}),
        ("another policy", {"version": "v0002"}),
        ("another arm", {"arm": Arm.DISTILLED}),
        ("other sampling", {"standard_sampling": False}),
        ("no consent", {"may_train": False}),
        ("held out", {"split": Split.GATE}),
        ("degraded", {"degraded": "deadline"}),
        ("failed", {"status": "failed"}),
    ],
)
async def test_winners_are_exact_best_of_n_only(
    store: Store, fault: str, changes: dict[str, object]
) -> None:
    await store.completions.record_many([best_of_n("good", 8), best_of_n(fault, 8, **changes)])
    assert ids(await store.completions.winners(8, 10)) == ["good"]


async def test_winners_come_newest_first_and_of_the_asked_n(store: Store) -> None:
    await store.completions.record_many(best_of_n(f"bon {n}", n) for n in (8, 4, 16, 2, 8)[:4])
    await store.completions.record(best_of_n("newest", 8))
    assert ids(await store.completions.winners(1, 10)) == [
        "newest",
        "bon 2",
        "bon 16",
        "bon 4",
        "bon 8",
    ]
    assert ids(await store.completions.winners(8, 2)) == ["newest", "bon 16"]
    assert ids(await store.completions.winners(8, 10, exclude={5})) == ["bon 16", "bon 8"]
