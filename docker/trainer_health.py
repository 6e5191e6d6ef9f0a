"""Health of the trainer: exit code 0 if it has reported to the store lately."""

import asyncio
import sys
import time
from pathlib import Path

from bond_core.config import load_config
from bond_core.store import open_store

FRESH_S = 120.0
"""A trainer reports at least once a minute, also while it waits."""


async def last_report() -> float | None:
    """Unix seconds of the trainer's last report, None if there was never one."""
    config = load_config(Path(sys.argv[1]))
    store = await open_store(config.store_url, migrate=False)
    try:
        run = await store.training.latest()
    finally:
        await store.close()
    return None if run is None else run.heartbeat_at


at = asyncio.run(last_report())
if at is None or time.time() - at > FRESH_S:
    since = "" if at is None else f" for {time.time() - at:.0f} s"
    sys.exit(f"the trainer has not reported{since}")
