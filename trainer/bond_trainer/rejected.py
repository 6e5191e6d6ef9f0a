"""Rejected versions on disk: nobody serves or builds on them, so only the newest keep theirs."""

import asyncio
import shutil
from pathlib import Path

from bond_core.adapters import adapter_path
from bond_core.store import Store
from bond_core.types import PolicyState

KEEP_REJECTED = 3
"""Rejected versions whose weights stay, to be looked into."""
_PREFIX = ".writing-removed-"
"""What `remove_leftovers` clears up, should a removal be interrupted."""


async def forget_old_rejected(store: Store, adapters_dir: Path) -> list[str]:
    """Remove the directories of all but the newest rejected versions; returns their names.

    Rejection is final, so none of them can become another state meanwhile. The store keeps their
    rows, with evaluation and reasons.
    """
    rejected = await store.policies.in_state(PolicyState.REJECTED)
    old = [adapter_path(adapters_dir, record.version) for record in rejected[:-KEEP_REJECTED]]
    return await asyncio.to_thread(_remove, old)


def _remove(directories: list[Path]) -> list[str]:
    """Renamed first, so that no directory is ever seen half removed."""
    present = [directory for directory in directories if directory.is_dir()]
    for directory in present:
        going = directory.with_name(f"{_PREFIX}{directory.name}")
        directory.rename(going)
        shutil.rmtree(going)
    return [directory.name for directory in present]
