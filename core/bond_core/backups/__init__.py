"""Backups: database, adapters and the trainer's checkpoint, copied while everything runs."""

from bond_core.backups.description import Description, read_description
from bond_core.backups.restoring import restore_backup
from bond_core.backups.taking import take_backup
from bond_core.backups.whole import missing_adapters

__all__ = [
    "Description",
    "missing_adapters",
    "read_description",
    "restore_backup",
    "take_backup",
]
