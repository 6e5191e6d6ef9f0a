"""Backups: database, adapters and the trainer's checkpoint, copied while everything runs."""

from bond_core.backups.database import require_database
from bond_core.backups.description import Description, read_description
from bond_core.backups.restoring import restore_backup
from bond_core.backups.taking import take_backup
from bond_core.backups.whole import missing_adapters, version_states

__all__ = [
    "Description",
    "missing_adapters",
    "read_description",
    "require_database",
    "restore_backup",
    "take_backup",
    "version_states",
]
