"""Which policy versions may have learned from rows of the log."""

import asyncio
from pathlib import Path

from bond_core.adapters import read_manifest
from bond_core.errors import AdapterError
from bond_core.store import Policies


async def versions_that_saw(policies: Policies, first_seq: int, last_seq: int) -> list[str]:
    """Versions whose manifest's window of the log overlaps these rows.

    A window is one interval for all that a learner has seen since it began, so that a version may
    be named that passed over these very rows; one that saw them is not left out. Versions whose
    folder is gone are not served any more and are left out.
    """
    seen: list[str] = []
    for record in await policies.all():
        if not record.path:
            continue
        try:
            manifest = await asyncio.to_thread(read_manifest, Path(record.path))
        except AdapterError:
            continue
        first, last = manifest.log_window.get("first_seq"), manifest.log_window.get("last_seq")
        if first is not None and last is not None and first <= last_seq and last >= first_seq:
            seen.append(record.version)
    return seen
