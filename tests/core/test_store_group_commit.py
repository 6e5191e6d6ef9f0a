"""Group commit: shared transactions, answers after the commit, errors to the guilty only."""

import asyncio
import resource
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from databases import OpenStoreAt
from locked_store import locked, transaction_begins
from sqlalchemy import Connection
from stored import best_of_n, completion

from bond_core.errors import StoreUnavailableError
from bond_core.store import CompletionRecord, Store
from bond_core.store.database import Database, Work
from bond_core.store.writer import GroupCommit
from bond_core.types import SamplingParams


async def test_concurrent_rows_share_commits_and_are_visible_to_others(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    writer = await open_store_at(database_url)
    reader = await open_store_at(database_url)
    rows = [best_of_n(f"row {i}", 2, unit=f"unit {i}") for i in range(200)]

    await asyncio.gather(*(writer.completions.record(row) for row in rows))

    assert writer.completions.commits <= 3
    found = await reader.completions.get_many([row.id for row in rows])
    assert [record.seq for record in found] == list(range(1, 201))
    assert {record.id: record.unit for record in found} == {row.id: row.unit for row in rows}


async def test_a_batch_is_no_larger_than_configured(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url, group_commit_rows=10)
    await asyncio.gather(*(store.completions.record(completion(f"row {i}")) for i in range(95)))
    assert store.completions.commits == 10


async def test_a_row_alone_waits_for_nobody(store: Store) -> None:
    for i in range(5):
        await store.completions.record(completion(f"row {i}"))
        assert store.completions.commits == i + 1


async def test_one_bad_row_fails_alone(store: Store) -> None:
    await store.completions.record(completion("taken"))
    names = [*(f"row {i}" for i in range(20)), "taken", *(f"row {i}" for i in range(20, 40))]

    outcomes = await asyncio.gather(
        *(store.completions.record(completion(name)) for name in names), return_exceptions=True
    )

    failed = [name for name, o in zip(names, outcomes, strict=True) if isinstance(o, Exception)]
    assert failed == ["taken"]
    assert isinstance(outcomes[20], StoreUnavailableError)
    assert "the row was not stored" in str(outcomes[20])
    assert await store.completions.count() == 41
    assert store.completions.commits == 2


async def test_closing_commits_what_waits_and_refuses_what_comes(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url, group_commit_rows=4)
    waiting = [
        asyncio.create_task(store.completions.record(completion(f"row {i}"))) for i in range(30)
    ]
    await asyncio.sleep(0)
    await store.completions.close()
    assert len(await asyncio.gather(*waiting)) == 30
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.completions.record(completion("late"))
    await store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.ping()


class GatedDatabase:
    """Runs no work; every write waits at a gate, and is counted."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.committed: list[str] = []

    async def read(self, work: Work[object]) -> object:
        raise NotImplementedError

    async def write(self, work: Work[object], timeout_s: float | None = None) -> object:
        self.begun.set()
        await self.gate.wait()
        return work(None)  # type: ignore[arg-type]

    async def close(self) -> None: ...


def gated_writer(
    timeout_s: float, max_waiting: int = 100
) -> tuple[GatedDatabase, GroupCommit[str, str]]:
    gated = GatedDatabase()
    database: Database = gated  # type: ignore[assignment]

    def apply(_connection: Connection, items: Sequence[str]) -> list[str]:
        gated.committed.extend(items)
        return [item.upper() for item in items]

    return gated, GroupCommit(
        database, apply, max_rows=8, timeout_s=timeout_s, max_waiting=max_waiting
    )


async def test_nobody_is_answered_before_the_commit_and_late_items_are_withdrawn() -> None:
    gated, writer = gated_writer(timeout_s=0.05)
    first = asyncio.create_task(writer.submit("first"))
    await gated.begun.wait()
    second = asyncio.create_task(writer.submit("second"))

    with pytest.raises(StoreUnavailableError, match=r"did not commit within 0\.05 s"):
        await second
    with pytest.raises(StoreUnavailableError, match=r"did not commit within 0\.05 s"):
        await first
    gated.gate.set()
    await writer.close()
    # The first one's transaction had begun, so it may appear; the second never does.
    assert gated.committed == ["first"]


async def test_a_cancelled_item_that_still_waits_is_withdrawn() -> None:
    gated, writer = gated_writer(timeout_s=10.0)
    tasks = [asyncio.create_task(writer.submit("first"))]
    await gated.begun.wait()
    tasks += [asyncio.create_task(writer.submit(name)) for name in ("second", "third")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    gated.gate.set()

    assert await tasks[0] == "FIRST"
    assert await tasks[2] == "THIRD"
    await writer.close()
    assert gated.committed == ["first", "third"]


async def test_an_unexpected_fault_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_connection: Connection, _items: Sequence[str]) -> list[str]:
        raise RuntimeError("a fault of ours")

    gated = GatedDatabase()
    gated.gate.set()
    database: Database = gated  # type: ignore[assignment]
    writer = GroupCommit[str, str](database, broken, max_rows=8, timeout_s=1.0)
    with pytest.raises(StoreUnavailableError, match="a fault of ours"):
        await writer.submit("first")
    with pytest.raises(StoreUnavailableError, match="a fault of ours"):
        await writer.submit("second")
    await writer.close()
    assert [record.message for record in caplog.records] == ["group commit failed"] * 2


async def test_a_locked_file_is_waited_for_then_refused(
    tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    file = tmp_path / "bond.db"
    store = await open_store_at(f"sqlite:///{file}", commit_timeout_s=0.3)
    patient = await open_store_at(f"sqlite:///{file}", commit_timeout_s=60.0)
    blocker = sqlite3.connect(file, isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match=r"did not commit within 0\.3 s"):
            await store.completions.record(completion("blocked"))
        with pytest.raises(StoreUnavailableError, match="stayed locked by another process"):
            await store.ping()
        assert await store.completions.count() == 0  # readers go on

        begun = transaction_begins(patient)
        waits = asyncio.create_task(patient.completions.record(completion("waits")))
        await begun.wait()
        await asyncio.sleep(0.05)
        assert not waits.done()
        blocker.execute("ROLLBACK")
        await waits
        found = await store.completions.get("waits")
        assert found is not None
    finally:
        blocker.close()


async def refused_rows(store: Store) -> list[str]:
    """What eight writers of large rows are told."""
    rows = [completion(f"row {i}", unit="x" * 100_000) for i in range(8)]
    outcomes = await asyncio.gather(
        *(store.completions.record(row) for row in rows), return_exceptions=True
    )
    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
    return [str(outcome) for outcome in outcomes]


async def test_a_full_disk_is_an_error_until_there_is_space(
    tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(f"sqlite:///{tmp_path / 'bond.db'}")
    limit = "PRAGMA max_page_count = {}"
    await store.database.write(lambda c: c.exec_driver_sql(limit.format(1)).close())

    assert all("disk is full" in words for words in await refused_rows(store))
    assert await store.completions.count() == 0

    await store.database.write(lambda c: c.exec_driver_sql(limit.format(10**6)).close())
    await store.completions.record(completion("row 0"))
    assert await store.completions.count() == 1


async def test_a_read_only_database_is_an_error(tmp_path: Path, open_store_at: OpenStoreAt) -> None:
    store = await open_store_at(f"sqlite:///{tmp_path / 'bond.db'}")
    await store.ping()
    await store.database.write(lambda c: c.exec_driver_sql("PRAGMA query_only = ON").close())

    assert all("readonly database" in words for words in await refused_rows(store))
    with pytest.raises(StoreUnavailableError, match="Check that the database is up, writable"):
        await store.ping()
    assert await store.completions.count() == 0


async def test_a_slow_database_does_not_grow_memory(
    tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    file = tmp_path / "bond.db"
    store = await open_store_at(f"sqlite:///{file}", commit_timeout_s=120.0, queue_rows=16)
    blocker = sqlite3.connect(file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    def row(number: int) -> CompletionRecord:
        return completion(f"row {number}", unit=f"{number}" + "x" * 65_536)

    begun = transaction_begins(store)
    waiting = [asyncio.create_task(store.completions.record(row(0)))]
    await begun.wait()
    waiting += [asyncio.create_task(store.completions.record(row(i))) for i in range(1, 17)]
    while store.completions.num_waiting < 16:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(100, 2100):
        with pytest.raises(StoreUnavailableError, match=r"16 rows wait .*store\.queue_rows"):
            await store.completions.record(row(number))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    blocker.execute("ROLLBACK")
    blocker.close()
    await asyncio.gather(*waiting)
    assert await store.completions.count() == 17
    assert grown < 32 * 1024, f"{grown} KiB; the rows refused are 128 MiB"


async def test_what_is_given_up_gives_its_place_back() -> None:
    gated, writer = gated_writer(timeout_s=0.05, max_waiting=2)
    first = asyncio.create_task(writer.submit("first"))
    await gated.begun.wait()
    for _ in range(2):
        late = [asyncio.create_task(writer.submit(name)) for name in ("second", "third")]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="2 rows wait"):
            await writer.submit("fourth")
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
        assert writer.num_waiting == 0
    gated.gate.set()
    await asyncio.gather(first, return_exceptions=True)
    await writer.close()
    assert gated.committed == ["first"]


async def test_who_queues_behind_a_lock_waits_no_longer_than_who_is_first(
    tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'bond.db'}"
    store = await open_store_at(url, commit_timeout_s=0.25)
    began = time.monotonic()
    with locked(store):
        asking = (store.leases.acquire(f"lease {i}", "me", 60.0) for i in range(60))
        told = await asyncio.gather(*asking, return_exceptions=True)
        took = time.monotonic() - began
    assert {type(error) for error in told} == {StoreUnavailableError}
    assert took < 6.0  # and not 60 times a quarter of a second
    assert await store.leases.acquire("lease", "me", 60.0)


async def test_a_store_that_is_closed_gives_up_a_long_wait_for_a_lock(
    tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'bond.db'}"
    store = await open_store_at(url, commit_timeout_s=0.25)
    with locked(store):
        migrating = asyncio.create_task(store.database.write(lambda c: None, timeout_s=300.0))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(store.database.close(), 60.0)
        with pytest.raises(StoreUnavailableError):
            await migrating


async def test_a_value_that_cannot_be_stored_is_its_own_rows_fault(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    """Whatever a type raises over it: the rows beside it are kept, and those after it."""
    store = await open_store_at(database_url)
    deep: dict[str, Any] = {}
    for _ in range(900):  # more than a writer of JSON follows
        deep = {"a": deep}
    rows = [
        completion("before"),
        completion("object", params=replace(SamplingParams(), further={"a": object()})),
        completion("deep", params=replace(SamplingParams(), further={"a": deep})),
        completion("no text", unit=cast(str, 5)),
        completion("behind"),
    ]
    outcomes = await asyncio.gather(
        *(store.completions.record(row) for row in rows), return_exceptions=True
    )
    assert [outcome is None for outcome in outcomes] == [True, False, False, False, True]
    assert all(isinstance(o, StoreUnavailableError) for o in outcomes if o is not None)
    await store.completions.record(completion("after"))
    kept = await store.completions.get_many([row.id for row in [*rows, completion("after")]])
    assert [record.id for record in kept] == ["before", "behind", "after"]
    with pytest.raises(StoreUnavailableError):
        await store.completions.record_many(rows)
