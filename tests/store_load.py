"""A process that writes to a store until it is killed, and says what was acknowledged.

    python store_load.py URL DURABILITY PREFIX

Each acknowledged id goes to standard output in one write of its own, after `record` has returned.
"""

import asyncio
import os
import sys

from stored import best_of_n

from bond_core.store import Annotation, open_store

WRITERS = 8


async def main(url: str, durability: str, prefix: str) -> None:
    store = await open_store(url, "power" if durability == "power" else "process")

    async def write(writer: int) -> None:
        number = 0
        while True:
            row = best_of_n(f"{prefix}-{writer}-{number}", 4)
            await store.completions.record(row)
            os.write(1, f"{row.id}\n".encode())
            await store.completions.annotate([Annotation(row.id, judge_score=float(number))])
            number += 1

    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
