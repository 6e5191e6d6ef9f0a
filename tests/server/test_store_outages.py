"""The store full, away or slow: a clear 503 in bounded time, bounded memory, and then recovery."""

import asyncio
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio
from databases import PostgresServer
from locked_store import impatient, locked, transaction_begins
from own_postgres import OwnPostgres
from running_gateway import MakeConfig, Run, Running, eventually, settled

from bond_core.store import open_store

LONG = [{"role": "user", "content": "x" * 3800}]
"""About 20 kB of a row, and 35 kB of memory: each byte is a token of the fake engine."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB: what is written beyond is a real ENOSPC."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system takes root; the limit in pages is tested below")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def refused_for_space(running: Running) -> None:
    """Ask until the disk is full; then every answer is a 503 that says so."""
    for _ in range(400):
        response = await running.post("/v1/distilled", messages=LONG)
        if response.status_code != 200:
            break
    for _ in range(3):
        again = await running.post("/v1/distilled", messages=LONG)
        for refused in (response, again):
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (503, "store_unavailable")
            assert "disk is full" in error["message"]
            assert "choices" not in refused.json()


async def rows_of(running: Running) -> int:
    return await running.gateway.store.completions.count()


async def test_a_full_disk_is_a_503_with_the_reason_until_there_is_space(
    run: Run, make_config: MakeConfig, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (2 << 20))
    async with run(make_config(data_dir=str(small_disk / "data"))) as running:
        assert (await running.post("/v1/distilled")).status_code == 200
        await refused_for_space(running)
        kept = await rows_of(running)
        ballast.unlink()
        recovered = await running.post("/v1/distilled", messages=LONG)
        assert recovered.status_code == 200
        assert await rows_of(running) == kept + 1
    raw = sqlite3.connect(small_disk / "data" / "bond.db")
    assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    raw.close()


async def test_a_limit_in_pages_is_a_full_disk_too(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        database = running.gateway.store.database
        limit = "PRAGMA max_page_count = {}"
        await database.write(lambda c: c.exec_driver_sql(limit.format(1)).close())
        await refused_for_space(running)
        await database.write(lambda c: c.exec_driver_sql(limit.format(10**6)).close())
        assert (await running.post("/v1/distilled", messages=LONG)).status_code == 200


async def test_a_server_that_is_stopped_is_waited_for_then_refused_then_used_again(
    run: Run, make_config: MakeConfig
) -> None:
    server = OwnPostgres(Path(tempfile.mkdtemp()) / "postgres")
    try:
        config = make_config(store={"url": server.url, "commit_timeout_s": 2.0})
        async with run(config) as running:
            assert (await running.post("/v1/best-of-n")).status_code == 200
            await asyncio.to_thread(server.stop)
            began = time.perf_counter()
            refused = await running.post("/v1/best-of-n")
            keyed = await running.client.post(
                "/v1/best-of-n",
                json={"messages": [{"role": "user", "content": "hi"}]},
                headers={"Idempotency-Key": "k"},
            )
            assert time.perf_counter() - began < 30
            not_ready = await running.client.get("/readyz")
            assert (await running.client.get("/healthz")).status_code == 200
            await asyncio.to_thread(server.start)

            async def answers() -> bool:
                return (await running.post("/v1/best-of-n")).status_code == 200

            await eventually(answers, timeout_s=20)
            assert (await running.client.get("/readyz")).status_code == 200
            rows = await rows_of(running)
        store = await open_store(server.url)
        assert await store.completions.count() == rows >= 2
        await store.close()
    finally:
        server.close()
    for response in (refused, keyed):
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
    assert not_ready.status_code == 503
    assert "store" in not_ready.json()["error"]["message"]


@asynccontextmanager
async def table_locked(url: str) -> AsyncIterator[None]:
    """Another session holds the table of the log within the block."""
    engine = sa.ext.asyncio.create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("LOCK TABLE completions IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await engine.dispose()


async def test_a_table_that_is_locked_in_postgresql_is_a_503_in_bounded_time(
    run: Run, make_config: MakeConfig, postgres: PostgresServer
) -> None:
    url = postgres.migrated()
    config = make_config(store={"url": url}, server={"policy_poll_s": 60})
    async with run(config) as running:
        with impatient(running.gateway.store, 0.5):
            async with table_locked(url):
                refused = await running.post("/v1/best-of-n")

        async def answers() -> bool:
            return (await running.post("/v1/best-of-n")).status_code == 200

        await eventually(answers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")


async def test_a_store_that_is_away_at_the_end_does_not_make_it_a_failure(
    run: Run, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        async with run(make_config()) as running:
            assert (await running.post("/v1/best-of-n")).status_code == 200
            assert running.gateway.controller.holds_lease
            stack.enter_context(locked(running.gateway.store, commit_timeout_s=0.2))
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "lease is left to run out: " in text]) == 1


async def test_answers_that_a_slow_database_cannot_take_are_refused_at_once(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(
        store={"queue_rows": 10, "commit_timeout_s": 120.0, "group_commit_rows": 5},
        server={"policy_poll_s": 60},
    )
    async with run(config) as running:
        assert (await running.post("/v1/distilled")).status_code == 200
        store = running.gateway.store
        await settled(running)
        with locked(store):
            begun = transaction_begins(store)
            waiting = [asyncio.create_task(running.post("/v1/distilled"))]
            await begun.wait()
            waiting += [asyncio.create_task(running.post("/v1/distilled")) for _ in range(10)]

            async def full() -> bool:
                return store.completions.num_waiting == 10

            await eventually(full)
            refused = [await running.post("/v1/distilled") for _ in range(10)]
            # none of them waited for a commit: those before them wait still
            assert not any(task.done() for task in waiting)
        committed = await asyncio.gather(*waiting)
        assert (await running.post("/v1/distilled")).status_code == 200
        assert await rows_of(running) == 1 + 11 + 1
        assert running.gateway.store.completions.num_waiting == 0
    assert {answer.status_code for answer in committed} == {200}
    assert {answer.status_code for answer in refused} == {503}
    error = refused[0].json()["error"]
    assert error["code"] == "store_unavailable"
    assert "store.queue_rows" in error["message"]
