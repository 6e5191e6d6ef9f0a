"""Restoring a backup into a store and a data folder that hold nothing yet.

The adapters are put first and the database last: a gateway that found versions without their
adapters would roll them back, and that is final.
"""

import asyncio
import shutil
from pathlib import Path

from bond_core.adapters import adapter_path, verify_adapter
from bond_core.backups.description import (
    ADAPTERS_FOLDER,
    CHECKPOINTS_FOLDER,
    Description,
    read_description,
)
from bond_core.backups.taking import copy_folder, copy_run_id
from bond_core.backups.whole import missing_adapters
from bond_core.config import BondConfig
from bond_core.errors import AdapterError, ConfigError
from bond_core.store import open_database, open_store
from bond_core.store.copies import FILES, files_of, has_tables, kind_of, put_database
from bond_core.store.migrate import known_revisions
from bond_core.store.versions import move_adapters, version_states
from bond_core.types import PolicyState

_AT_THE_GATE = (PolicyState.CHALLENGER, PolicyState.CANARY)
_REJECTED_SINCE = "rejected while the backup was taken that this was restored from"
"""Nothing else takes a version's adapter away, and a backup without the others is refused."""


async def restore_backup(config: BondConfig, folder: Path) -> Description:
    """Put a backup in place and bring it to this release's schema.

    Raises `ConfigError` if something is there already, for another kind of database and for a
    backup of a newer release, `StoreUnavailableError` for a database that does not take it, and
    `AdapterError` if the backup lacks the adapters of a version that its database needs.
    """
    description = read_description(folder)
    url = config.store_url
    if description.database != kind_of(url):
        raise ConfigError(
            f"{folder} is of {description.database} and store.url names {kind_of(url)}; a backup "
            "is restored into the kind of database that it was taken from"
        )
    if description.revision not in known_revisions():
        raise ConfigError(
            f"{folder} was taken at revision {description.revision} by bondserve "
            f"{description.release}, which this release does not know: restore it with that one"
        )
    for version in description.versions:
        verify_adapter(folder / ADAPTERS_FOLDER / version)
    await _refuse_what_is_there(config, description)
    await asyncio.to_thread(_put_folders, config, folder, description)
    await asyncio.to_thread(put_database, url, folder / FILES[kind_of(url)])
    await _settle(config, description)
    return description


async def _refuse_what_is_there(config: BondConfig, description: Description) -> None:
    there = [adapter_path(config.adapters_dir, version) for version in description.versions]
    there += files_of(config.store_url)
    if description.checkpoint is not None:
        there.append(config.checkpoints_dir)
    found = [str(path) for path in there if path.exists()]
    if description.database == "postgresql":
        database, _ = open_database(config.store_url)
        try:
            if await database.read(has_tables):
                found.append("the tables of the database")
        finally:
            await database.close()
    if found:
        raise ConfigError(
            f"restoring would overwrite {', '.join(found)}: move it away, or restore into another "
            "data_dir and an empty database"
        )


def _put_folders(config: BondConfig, folder: Path, description: Description) -> None:
    for version in description.versions:
        to = adapter_path(config.adapters_dir, version)
        copy_folder(folder / ADAPTERS_FOLDER / version, to)
    if description.checkpoint is not None:
        name = description.checkpoint
        copy_folder(folder / CHECKPOINTS_FOLDER / name, config.checkpoints_dir / name)
        copy_run_id(folder / CHECKPOINTS_FOLDER, config.checkpoints_dir)


async def _settle(config: BondConfig, description: Description) -> None:
    """Migrate, let versions be found where they now are, and look whether all is there."""
    # whoever serves from it later is refused if the server cannot keep what is promised
    store = await open_store(config.store_url, config.store.durability, check_power=False)
    try:
        states = await store.database.read(version_states)
        for version in set(description.versions) - set(states):
            # proposed while the backup was taken; the name will be given again
            shutil.rmtree(adapter_path(config.adapters_dir, version))
        await store.database.write(lambda c: move_adapters(c, config.adapters_dir.resolve()))
        for version, state in states.items():
            if state in _AT_THE_GATE and version not in description.versions:
                await store.policies.move(version, state, PolicyState.REJECTED, _REJECTED_SINCE)
        states = await store.database.read(version_states)
    finally:
        await store.close()
    if wrong := missing_adapters(states, config.adapters_dir):
        raise AdapterError(
            f"the backup lacks adapters that its database needs: {'; '.join(wrong.values())}. Put "
            "them there before a gateway starts, or it rolls these versions back"
        )
