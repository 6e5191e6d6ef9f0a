"""`kill -9` at random moments under load: what was acknowledged is there, and replayable."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from killed_gateway import Nursery, check, kill_repeatedly, write_config

KILLS = 10


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


async def test_no_acknowledged_row_is_lost_and_none_is_half_there(
    nursery: Nursery, tmp_path: Path, database_url: str
) -> None:
    config = write_config(tmp_path, database_url)

    account = await kill_repeatedly(nursery, config, KILLS, seed=9, most_answers=40)
    found = await check(account, database_url)

    assert account.failures == []
    assert (found["kills"], found["lost"], found["wrong"], found["half"]) == (KILLS, 0, 0, 0)
    assert found["acknowledged"] >= 5 * KILLS
    assert found["streams"] >= KILLS
    assert found["replayed"] > 0
    assert found["rows"] >= found["acknowledged"]
    if database_url.startswith("sqlite"):
        raw = sqlite3.connect(tmp_path / "bond.db")
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        raw.close()
