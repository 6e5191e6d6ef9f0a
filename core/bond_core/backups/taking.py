"""Taking a backup of a system that runs.

The order makes the parts agree without stopping anything. The checkpoint comes first: it decides
what the trainer has consumed, so with one that is older than the database rows are claimed again,
where a newer one would pass over rows that the restored log numbers anew. The database is second,
in one snapshot. The adapters are last: a version's directory is whole before the store hears of
it and never changes, so whatever the snapshot names is there, but for challengers that were
rejected since: the trainer removes those, and restoring rejects them too.
"""

import asyncio
import shutil
import time
from pathlib import Path

from bond_core import __version__
from bond_core.adapters import adapter_path, verify_adapter
from bond_core.backups.description import (
    ADAPTERS_FOLDER,
    CHECKPOINTS_FOLDER,
    DESCRIPTION_FILE,
    RUN_ID_FILE,
    Description,
)
from bond_core.backups.whole import needed_versions
from bond_core.config import BondConfig
from bond_core.errors import AdapterError, BondError, ConfigError
from bond_core.store import open_database
from bond_core.store.copies import FILES, copy_database, kind_of, require_database, sync
from bond_core.store.database import Database
from bond_core.store.migrate import current_revision
from bond_core.store.versions import version_states

_CHECKPOINT_ATTEMPTS = 5


async def take_backup(config: BondConfig, folder: Path) -> Description:
    """Copy database, adapters and the newest checkpoint into a new or empty folder.

    Raises `ConfigError` for a folder that has something in it and for a store without tables,
    `StoreUnavailableError` for a database that cannot be copied, and `AdapterError` for a version
    that is missing or damaged on the disk; the folder is then as empty as before.
    """
    url = config.store_url
    require_database(url)
    database, _ = open_database(url)
    try:
        revision = await database.read(current_revision)
        if revision is None:
            raise ConfigError("there is nothing to back up: the database has no tables")
        await asyncio.to_thread(_make_empty, folder)
        try:
            return await _copy(config, database, revision, folder)
        except (BondError, OSError):
            # else a second attempt would be refused for what this one has left
            await asyncio.to_thread(_clear, folder)
            raise
    finally:
        await database.close()


async def _copy(config: BondConfig, database: Database, revision: str, folder: Path) -> Description:
    checkpoint = await asyncio.to_thread(_copy_checkpoint, config.checkpoints_dir, folder)
    created_at = time.time()
    url = config.store_url
    await asyncio.to_thread(copy_database, url, folder / FILES[kind_of(url)])
    versions = await _copy_adapters(database, config.adapters_dir, folder)
    description = Description(
        created_at=created_at,
        release=__version__,
        database=kind_of(url),
        revision=revision,
        versions=versions,
        checkpoint=checkpoint,
    )
    file = folder / DESCRIPTION_FILE
    file.write_text(description.model_dump_json(indent=1) + "\n")
    for path in (file, folder):
        sync(path)
    return description


def copy_folder(source: Path, to: Path) -> None:
    """Copy a folder of files durably; it appears whole, by a rename."""
    arriving = arriving_at(to)
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, arriving)
    for path in (*arriving.iterdir(), arriving):
        sync(path)
    arriving.rename(to)
    sync(to.parent)


def arriving_at(to: Path) -> Path:
    """Where a folder is written before it is whole."""
    return to.with_name(f".writing-{to.name}")


def copy_run_id(checkpoints_dir: Path, to: Path) -> None:
    """The name under which the trainer has claimed rows; written once, before any checkpoint."""
    if (file := checkpoints_dir / RUN_ID_FILE).is_file():
        shutil.copyfile(file, to / RUN_ID_FILE)
        sync(to / RUN_ID_FILE)


def newest_checkpoint(checkpoints_dir: Path) -> Path | None:
    """The trainer's newest checkpoint; their names are in the order of their steps."""
    return max(checkpoints_dir.glob("step-*"), default=None)


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: give each backup a folder of its own")


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _copy_checkpoint(checkpoints_dir: Path, folder: Path) -> str | None:
    for attempt in range(_CHECKPOINT_ATTEMPTS):
        newest = newest_checkpoint(checkpoints_dir)
        if newest is None:
            return None
        try:
            copy_folder(newest, folder / CHECKPOINTS_FOLDER / newest.name)
        except (FileNotFoundError, shutil.Error):
            # the trainer has made two newer ones meanwhile, and removed this one
            if attempt == _CHECKPOINT_ATTEMPTS - 1 or newest.exists():
                raise
            continue
        copy_run_id(checkpoints_dir, folder / CHECKPOINTS_FOLDER)
        return newest.name
    raise AssertionError("the last attempt returns or raises")


async def _copy_adapters(database: Database, adapters_dir: Path, folder: Path) -> list[str]:
    """Copy what is there of the known versions; each that is needed has to be whole.

    The store is asked after the snapshot, so it names all that the snapshot does; restoring leaves
    out what it names beyond.
    """
    copied: list[str] = []
    for version in await database.read(version_states):
        source, to = adapter_path(adapters_dir, version), folder / ADAPTERS_FOLDER / version
        try:
            await asyncio.to_thread(_copy_adapter, source, to)
        except (AdapterError, OSError) as error:
            states = await database.read(version_states)
            damaged = isinstance(error, AdapterError)  # perhaps what it was rejected for
            if version in needed_versions(states) or (source.is_dir() and not damaged):
                raise
            await asyncio.to_thread(shutil.rmtree, arriving_at(to), ignore_errors=True)
        else:
            copied.append(version)
    return copied


def _copy_adapter(source: Path, to: Path) -> None:
    verify_adapter(source)
    copy_folder(source, to)
    verify_adapter(to)
