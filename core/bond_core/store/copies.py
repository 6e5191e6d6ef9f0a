"""One consistent copy of a database that is in use: `VACUUM INTO`, or pg_dump."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.errors import ConfigError, StoreUnavailableError
from bond_core.store.sqlite import database_file
from bond_core.store.urls import parse_url, plain_url

DatabaseKind = Literal["sqlite", "postgresql"]

FILES: dict[DatabaseKind, str] = {"sqlite": "bond.db", "postgresql": "bond.dump"}
_BUSY_S = 60.0


def kind_of(url: str) -> DatabaseKind:
    """Which database a store's URL names."""
    return "sqlite" if parse_url(url).get_backend_name() == "sqlite" else "postgresql"


def copy_database(url: str, to: Path) -> None:
    """Write one snapshot of the database, durably; what is committed meanwhile is not in it.

    Writers go on: SQLite's copy is one read transaction, and pg_dump's too. Raises
    `StoreUnavailableError` with the database's own words.
    """
    if kind_of(url) == "sqlite":
        _vacuum_into(database_file(parse_url(url)), to)
    else:
        _run_tool("pg_dump", parse_url(url), "--format=custom", "--no-owner", f"--file={to}")
    sync(to)


def put_database(url: str, copy: Path) -> None:
    """Make the database what the copy was. It must be empty: see `files_of` and `has_tables`.

    The file appears whole by a rename; PostgreSQL is filled in one transaction.
    """
    if kind_of(url) == "postgresql":
        _run_tool("pg_restore", parse_url(url), "--no-owner", "--single-transaction", str(copy))
        return
    file = database_file(parse_url(url))
    file.parent.mkdir(parents=True, exist_ok=True)
    arriving = file.with_name(f"{file.name}.arriving")
    shutil.copyfile(copy, arriving)
    sync(arriving)
    arriving.rename(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Have a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_database(url: str) -> None:
    """Raise `ConfigError` for a SQLite file that is not there: opening would make it."""
    missing = [file for file in files_of(url)[:1] if not file.is_file()]
    if missing:
        raise ConfigError(f"there is no database at {missing[0]}: name the data_dir of a gateway")


def files_of(url: str) -> list[Path]:
    """The files of a SQLite database, its own first; none of PostgreSQL's."""
    if kind_of(url) == "postgresql":
        return []
    file = database_file(parse_url(url))
    return [file, file.with_name(f"{file.name}-wal")]


def has_tables(connection: Connection) -> bool:
    """Whether the database holds anything."""
    return bool(sa.inspect(connection).get_table_names())


def _vacuum_into(file: Path, to: Path) -> None:
    try:
        with closing(sqlite3.connect(file, timeout=_BUSY_S)) as connection:
            connection.execute("VACUUM INTO ?", (str(to),))
        with closing(sqlite3.connect(to)) as copy:
            [(found,)] = copy.execute("PRAGMA quick_check").fetchall()
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"{file} could not be copied to {to}: {error}") from error
    if found != "ok":
        raise StoreUnavailableError(f"the copy {to} of {file} is damaged: {found}")


def _run_tool(tool: str, url: sa.URL, *arguments: str) -> None:
    """One of PostgreSQL's own programs; the password goes by the environment, where other users
    of the machine do not see it."""
    environment = dict(os.environ)
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
    try:
        subprocess.run(
            [tool, f"--dbname={plain_url(url).render_as_string(hide_password=False)}", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        raise ConfigError(
            f"{tool} is not on the PATH: install PostgreSQL's client programs, of the server's "
            "major version or newer"
        ) from None
    except subprocess.CalledProcessError as error:
        raise StoreUnavailableError(f"{tool} failed: {error.stderr.strip()}") from None
