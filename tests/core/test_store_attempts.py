"""A request that its client sent again counts once, whatever the order of the commits."""

import asyncio
import itertools
from typing import Any

import pytest
from databases import OpenStoreAt
from stored import completion

from bond_core.store import CompletionRecord, Origin, Store
from bond_core.store.attempts import WINDOW_S, repeated_attempts


def attempt(id: str, retry: int, at: float, **changes: Any) -> CompletionRecord:
    return completion(id, created_at=at, origin=Origin(digest="same", retry=retry), **changes)


async def counted(store: Store, ids: list[str]) -> list[str]:
    return [r.id for r in await store.completions.get_many(ids) if not r.superseded]


@pytest.mark.parametrize(
    ("numbers", "repeated"),
    [
        ([0], set()),
        ([0, 1, 2], {0, 1}),
        ([0, 2], {0}),  # the attempt between left no row
        ([0, 0, 1], {1}),  # the same prompt sent twice: the newer one was repeated
        ([0, 0, 1, 1], {0, 1}),
        ([0, 1, 0, 1], {0, 2}),
        ([1, 0], set()),  # the first attempt left no row, then a new request
        ([2, 1], set()),
    ],
)
def test_which_attempts_are_repeated(numbers: list[int], repeated: set[int]) -> None:
    assert repeated_attempts(list(enumerate(numbers))) == repeated


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_the_last_attempt_counts_in_any_order_of_commits(
    database_url: str, open_store_at: OpenStoreAt, order: tuple[int, ...]
) -> None:
    store = await open_store_at(database_url, clock=lambda: 2000.0)
    rows = [
        attempt("first", 0, 1000.0, status="failed"),
        attempt("second", 1, 1001.0, status="cancelled"),
        attempt("third", 2, 1002.0),
    ]
    for index in order:
        await store.completions.record(rows[index])
    assert await counted(store, ["first", "second", "third"]) == ["third"]
    [summary] = await store.completions.summarise()
    assert (summary.requests, summary.failed, summary.cancelled) == (1, 0, 0)


async def test_attempts_that_are_committed_at_once_count_once(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    """A store that was away lets go of what waits on two gateways in the same moment."""
    one, other = [await open_store_at(database_url, clock=lambda: 2000.0) for _ in range(2)]
    numbers = range(40)
    for i in numbers:
        names = [f"{digest}{i}" for digest in "ab"]
        firsts, seconds = [
            [
                completion(f"{name}/{retry}", created_at=1000.0 + retry,
                           origin=Origin(digest=name, retry=retry))
                for name in (names if retry else reversed(names))
            ]
            for retry in (0, 1)
        ]  # fmt: skip
        await asyncio.gather(
            one.completions.record_many(firsts), other.completions.record_many(seconds)
        )
    ids = [f"{digest}{i}/{retry}" for i in numbers for digest in "ab" for retry in (0, 1)]
    assert await counted(one, ids) == [id for id in ids if id.endswith("/1")]
    [summary] = await one.completions.summarise()
    assert summary.requests == 80


async def test_other_requests_are_left_alone(database_url: str, open_store_at: OpenStoreAt) -> None:
    store = await open_store_at(database_url, clock=lambda: 1e6)
    rows = [
        completion("without numbers"),
        attempt("long ago", 0, 1000.0),
        attempt("at last", 1, 1000.0 + WINDOW_S + 1),
        completion("other", created_at=5000.0, origin=Origin(digest="other", retry=0)),
        completion("another", created_at=5001.0, origin=Origin(digest="another", retry=1)),
    ]
    for row in rows:
        await store.completions.record(row)
    assert len(await counted(store, [row.id for row in rows])) == len(rows)


async def test_a_retry_finds_the_unit_of_the_attempt_before(store: Store) -> None:
    await store.completions.record(attempt("a", 0, 1000.0, unit="a request's own id"))
    assert await store.attempts.unit_of("same", 1001.0) == "a request's own id"
    assert await store.attempts.unit_of("same", 1001.0 + WINDOW_S) is None
    assert await store.attempts.unit_of("other", 1001.0) is None
