"""`bond db`: backup and restore of a deployment, and the revision of its tables."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bond_cli.failure import CONFIG_EXIT, CommandError, explains_failures
from bond_cli.target import ConfigFile, DataDir, config_of_data

if TYPE_CHECKING:
    from bond_core.config import BondConfig
    from bond_core.store.database import Database

app = typer.Typer(
    help="Backups of a deployment, and the tables of its store.", no_args_is_help=True
)

T = TypeVar("T")
Folder = Annotated[Path, typer.Argument(help="The backup's folder.", show_default=False)]


@app.command("status")
@explains_failures
def status(config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Say at which revision the tables are, and whether every version's adapter is there.

    Ends with code 1 if something is amiss.
    """
    resolved = _config(config, data_dir)

    async def look(database: "Database") -> tuple[str | None, dict[str, str]]:
        from bond_core.backups import missing_adapters
        from bond_core.store.migrate import current_revision
        from bond_core.store.versions import version_states

        revision = await database.read(current_revision)
        if revision is None:
            return None, {}
        states = await database.read(version_states)
        return revision, missing_adapters(states, resolved.adapters_dir)

    from bond_core.store.migrate import head_revision, known_revisions

    revision, wrong = _on_database(resolved, look)
    typer.echo(f"tables: revision {revision or 'none'}; this release needs {head_revision()}")
    for problem in wrong.values():
        typer.echo(f"adapter: {problem}")
    if revision is None:
        raise CommandError(
            "the database has no tables yet: the first start of a gateway makes them, or "
            "`bond db upgrade`; into an empty one a backup can be restored"
        )
    if revision not in known_revisions():
        raise CommandError(
            f"revision {revision} is none of this release: use the newer release that made it"
        )
    if wrong:
        raise CommandError(
            f"{', '.join(wrong)} cannot be served: put the adapters back from a backup before a "
            "gateway starts, or it rolls them back"
        )


@app.command("upgrade")
@explains_failures
def upgrade(config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Bring the tables to this release's revision, as a gateway or trainer does at its start."""
    resolved = _config(config, data_dir)

    async def migrate(database: "Database") -> tuple[str | None, str | None]:
        from bond_core.store import migrate as migrations

        before = await database.read(migrations.current_revision)
        await database.write(migrations.upgrade, timeout_s=migrations.MIGRATION_TIMEOUT_S)
        return before, await database.read(migrations.current_revision)

    before, after = _on_database(resolved, migrate)
    typer.echo(f"tables: revision {before or 'none'} before, {after} now")


@app.command("downgrade")
@explains_failures
def downgrade(
    revision: Annotated[
        str, typer.Argument(help="What the older release needs, as its `bond db status` says.")
    ],
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Take the tables back to an older release's revision. What only newer ones hold is lost."""
    resolved = _config(config, data_dir)

    async def migrate(database: "Database") -> str | None:
        from bond_core.store import migrate as migrations
        from bond_core.store.leases import Leases

        before = await database.read(migrations.current_revision)
        known = migrations.known_revisions()
        if before not in known or revision not in known[known.index(before) :]:
            raise CommandError(
                f"the tables are at revision {before or 'none'} and cannot be taken back to "
                f"{revision}; this release knows {', '.join(known)}, newest first",
                CONFIG_EXIT,
            )
        if running := await Leases(database, time.time).held():
            raise CommandError(
                f"somebody works on the store (leases: {', '.join(running)}): stop every gateway "
                "and trainer, and wait a minute after one that was killed"
            )
        await database.write(
            lambda connection: migrations.downgrade(connection, revision),
            timeout_s=migrations.MIGRATION_TIMEOUT_S,
        )
        return before

    before = _on_database(resolved, migrate)
    typer.echo(f"tables: revision {before} before, {revision} now; start the older release")


@app.command("backup")
@explains_failures
def backup(folder: Folder, config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Copy database, adapters and the newest checkpoint, while everything runs."""
    from bond_core.backups import take_backup

    taken = asyncio.run(take_backup(_config(config, data_dir), folder))
    typer.echo(
        f"{folder}: {taken.database} at revision {taken.revision}, {len(taken.versions)} adapters, "
        f"{taken.checkpoint or 'no checkpoint'}"
    )


@app.command("restore")
@explains_failures
def restore(folder: Folder, config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Put a backup into a data folder and a database that hold nothing yet."""
    from bond_core.backups import restore_backup

    resolved = _config(config, data_dir)
    found = asyncio.run(restore_backup(resolved, folder))
    typer.echo(
        f"{resolved.data_dir}: {len(found.versions)} adapters, "
        f"{found.checkpoint or 'no checkpoint'}, and the database of {_when(found.created_at)}"
    )


def _when(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def _config(config: Path | None, data_dir: Path | None) -> "BondConfig":
    if config is None and data_dir is None:
        raise CommandError(
            "whose store? Name the gateway's configuration with --config, or its folder with "
            "--data-dir",
            CONFIG_EXIT,
        )
    return config_of_data(config, data_dir)


def _on_database(config: "BondConfig", work: "Callable[[Database], Awaitable[T]]") -> T:
    """Run on the database as it is: nothing is migrated first."""

    async def run() -> T:
        from bond_core.store import open_database
        from bond_core.store.copies import require_database

        require_database(config.store_url)
        database, _ = open_database(config.store_url, config.store.durability)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())
