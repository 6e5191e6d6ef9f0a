"""Brings a database to this version's tables: Alembic's migrations, run from inside the package.

All of it is one transaction, which is also the lock: SQLite's begins as a writer, PostgreSQL's
takes an advisory lock. Of two processes that start together, one migrates and the other waits,
then finds nothing to do.
"""

import contextlib
import threading
from collections.abc import Generator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from bond_core.errors import ConfigError
from bond_core.store.tables import metadata

MIGRATION_TIMEOUT_S = 300.0
_ADVISORY_KEY = 0x626F6E64
_alembic_is_global = threading.Lock()
"""Alembic keeps the migration that runs in module globals; SQLite files migrate on threads."""


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Apply what is missing, inside the connection's transaction.

    Raises `ConfigError` for a database that a newer version of this package has written.
    """
    with _exclusive(connection):
        try:
            command.upgrade(_config(connection), revision)
        except CommandError as error:
            raise ConfigError(
                f"the store was written by a newer release of bondserve ({error}): upgrade this "
                "one; or stop every process of the newer one and, with it, run `bond db downgrade "
                f"{head_revision()}`; or point store.url at a new database"
            ) from error


def downgrade(connection: Connection, revision: str) -> None:
    """Undo migrations down to a revision (`base` for all), inside the connection's transaction."""
    with _exclusive(connection):
        command.downgrade(_config(connection), revision)


def require_current(connection: Connection) -> None:
    """Raise `ConfigError` unless the database has exactly this version's tables."""
    found, wanted = current_revision(connection), head_revision()
    if found != wanted:
        raise ConfigError(
            f"the store is at revision {found or 'none'} and this version needs {wanted}; start "
            "the gateway or the trainer once, they migrate it"
        )


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None without tables of ours."""
    return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """The revision that this version of the package needs."""
    return known_revisions()[0]


def known_revisions() -> list[str]:
    """Every revision that this version of the package knows, newest first."""
    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    return [script.revision for script in scripts.walk_revisions()]


def differences(connection: Connection) -> list[object]:
    """What the database has otherwise than `tables.metadata` says: empty, or a fault of ours."""
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, metadata))


def _config(connection: Connection) -> Config:
    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextlib.contextmanager
def _exclusive(connection: Connection) -> Generator[None]:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_KEY)))
        yield
    else:
        with _alembic_is_global:
            yield
