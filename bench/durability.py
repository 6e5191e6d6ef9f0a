"""What a committed row costs: both databases, both durability modes, one writer and many.

    python bench/durability.py --out bench/results/durability/cpu.json

Rows are whole Best-of-4 records; each writer waits for its commit before it goes on, as an answer
does. The modes take turns, so that a noisy machine is noisy for all; figures are medians over the
rounds, all rounds are kept. PostgreSQL runs beside, from pip, with its own defaults (fsync on).
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from own_postgres import OwnPostgres
from stored import best_of_n

from bond_core.store import Store, open_store

WRITERS = (1, 16, 64)
Mode = Literal["process", "power"]
MODES: tuple[Mode, ...] = ("process", "power")


async def measure(store: Store, writers: int, seconds: float, prefix: str) -> dict[str, float]:
    """Rows per second, and the time that one commit takes its writer, in milliseconds."""
    waited: list[float] = []
    commits = store.completions.commits
    until = time.perf_counter() + seconds

    async def write(writer: int) -> None:
        number = 0
        while time.perf_counter() < until:
            row = best_of_n(f"{prefix}-{writer}-{number}", 4)
            began = time.perf_counter()
            await store.completions.record(row)
            waited.append(time.perf_counter() - began)
            number += 1

    began = time.perf_counter()
    await asyncio.gather(*(write(writer) for writer in range(writers)))
    took = time.perf_counter() - began
    cuts = statistics.quantiles(waited, n=100)
    return {
        "rows_per_s": len(waited) / took,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "rows_per_commit": len(waited) / (store.completions.commits - commits),
    }


async def compare(urls: dict[str, str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """All databases, modes and numbers of writers, in turn, so many times."""
    found: dict[tuple[str, Mode, int], list[dict[str, float]]] = {}
    for number in range(rounds):
        for name, url in urls.items():
            for mode in MODES:
                store = await open_store(url, mode)
                for writers in WRITERS:
                    prefix = f"{name}-{mode}-{writers}-{number}"
                    figures = await measure(store, writers, seconds, prefix)
                    found.setdefault((name, mode, writers), []).append(figures)
                await store.close()
    return [
        {
            "database": name,
            "durability": mode,
            "writers": writers,
            **{key: statistics.median(r[key] for r in raw) for key in raw[0]},
            "rounds": raw,
        }
        for (name, mode, writers), raw in found.items()
    ]


def main() -> None:
    """Measure, print a table, write everything down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = Path(temporary)
        server = OwnPostgres(folder / "postgres")
        try:
            urls = {"sqlite": f"sqlite:///{folder / 'bond.db'}", "postgresql": server.url}
            rows = asyncio.run(compare(urls, asked.rounds, asked.seconds))
        finally:
            server.close()
    for row in rows:
        print(
            f"{row['database']:>10} {row['durability']:>7} {row['writers']:>3} writers: "
            f"{row['rows_per_s']:7.0f} rows/s, p50 {row['p50_ms']:6.2f} ms, "
            f"p99 {row['p99_ms']:6.2f} ms, {row['rows_per_commit']:5.1f} rows per commit"
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"hardware": asked.hardware, "figures": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
