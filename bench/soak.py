"""Hundreds of gateways killed under load: what was acknowledged, and what was found afterwards.

    python bench/soak.py --kills 200 --out bench/results/soak

For SQLite and PostgreSQL (started from pip, with fsync), half of the kills with each durability
mode. Each line of the raw results is the life of one gateway; `summary.json` is the verdict. The
exit status is 1 if an acknowledged row was lost, or a row was wrong or half there.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from killed_gateway import Nursery, as_json, check, kill_repeatedly, write_config
from own_postgres import OwnPostgres

SEED = 20260101


@contextmanager
def database(name: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if name == "sqlite":
        yield f"sqlite:///{folder / 'bond.db'}"
        return
    server = OwnPostgres(folder / "postgres")
    try:
        yield server.url
    finally:
        server.close()


async def soak(name: str, durability: str, kills: int, out: Path) -> dict[str, Any]:
    """Kill so many gateways over one database, write down each, check the store."""
    nursery = Nursery()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with database(name, folder) as url:
                config = write_config(folder, url, durability)
                began = time.perf_counter()
                account = await kill_repeatedly(nursery, config, kills, SEED, longest_life_s=1.0)
                found = await check(account, url)
    finally:
        nursery.close()
    with (out / f"{name}-{durability}.jsonl").open("w") as raw:
        raw.writelines(json.dumps(line) + "\n" for line in as_json(account))
    return {
        "database": name,
        "durability": durability,
        "seconds": round(time.perf_counter() - began, 1),
        **found,
        "failures": account.failures[:20],
    }


def main() -> None:
    """Run all four, print and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200, help="per database")
    parser.add_argument("--out", type=Path, default=Path("bench/results/soak"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = [
        asyncio.run(soak(name, durability, asked.kills // 2, asked.out))
        for name in ("sqlite", "postgresql")
        for durability in ("process", "power")
    ]
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    summary = {"machine": machine, "seed": SEED, "runs": runs}
    (asked.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    if any(run["lost"] or run["wrong"] or run["half"] or run["failures"] for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
