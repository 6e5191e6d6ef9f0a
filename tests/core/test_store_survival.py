"""Killed in the middle of writing, the store has every row that it acknowledged, whole."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from databases import OpenStoreAt
from stored import best_of_n

ROOT = Path(__file__).resolve().parents[2]
KILLS = 3
ROWS_BEFORE_EACH = 150


def acknowledged_before_kill(url: str, durability: str, prefix: str) -> list[str]:
    """Run the writer, kill it with SIGKILL while it writes; the ids it said were committed."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'core'}:{ROOT / 'tests'}"}
    script = str(ROOT / "tests" / "store_load.py")
    process = subprocess.Popen(
        [sys.executable, script, url, durability, prefix], stdout=subprocess.PIPE, env=environment
    )
    with process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(ROWS_BEFORE_EACH)]
        process.kill()
        seen += process.stdout.readlines()
    assert process.returncode == -9
    return [line.decode().strip() for line in seen if line.endswith(b"\n")]


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_no_acknowledged_row_is_lost_and_none_is_half_there(
    tmp_path: Path, open_store_at: OpenStoreAt, durability: str
) -> None:
    file = tmp_path / "bond.db"
    url = f"sqlite+aiosqlite:///{file}"

    acknowledged: list[str] = []
    for kill in range(KILLS):
        acknowledged += acknowledged_before_kill(url, durability, f"run{kill}")

    assert len(acknowledged) >= KILLS * ROWS_BEFORE_EACH
    store = await open_store_at(url)
    for id in acknowledged:
        found = await store.completions.get(id)
        assert found is not None, f"{id} was acknowledged and is lost"
        assert found.candidates == best_of_n(id, 4).candidates
    with sqlite3.connect(file) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        half = "SELECT count(*) FROM completions WHERE seq NOT IN (SELECT seq FROM contents)"
        assert raw.execute(half).fetchone() == (0,)
    raw.close()
    # At most the rows in flight at each kill are there without their callers having been told.
    assert len(acknowledged) <= await store.completions.count() <= len(acknowledged) + KILLS * 8
