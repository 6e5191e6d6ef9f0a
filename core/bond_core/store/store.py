"""The store as one object: opened in one place, passed down, closed at the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from bond_core.errors import ConfigError, StoreUnavailableError
from bond_core.store.access import Access
from bond_core.store.attempts import Attempts
from bond_core.store.completions import Completions
from bond_core.store.database import Database, Durability
from bond_core.store.deletions import Deletions
from bond_core.store.evaluations import Evaluations
from bond_core.store.gateway_lock import GatewayLock
from bond_core.store.idempotency import IdempotencyKeys
from bond_core.store.key_usage import KeyUsage
from bond_core.store.leases import Leases
from bond_core.store.migrate import MIGRATION_TIMEOUT_S, require_current, upgrade
from bond_core.store.policies import Policies
from bond_core.store.power import require_power
from bond_core.store.sqlite import SQLiteDatabase, database_file
from bond_core.store.stored import StoredCompletions
from bond_core.store.training import Training
from bond_core.store.urls import parse_url, require_known_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Everything that is kept: the log, the policies, their evaluations, the trainer's state."""

    database: Database
    completions: Completions
    policies: Policies
    evaluations: Evaluations
    training: Training
    leases: Leases
    access: Access
    key_usage: KeyUsage
    attempts: Attempts
    idempotency: IdempotencyKeys
    stored: StoredCompletions
    deletions: Deletions
    gateway_lock: GatewayLock | None = field(default=None)

    @property
    def takes_several_gateways(self) -> bool:
        """Whether other gateways may serve from this store at the same time."""
        return not isinstance(self.database, SQLiteDatabase)

    async def ping(self) -> None:
        """Raise `StoreUnavailableError` unless a transaction can be begun and committed now."""
        await self.database.write(lambda connection: connection.execute(sa.select(1)).scalar_one())

    async def close(self) -> None:
        """Commit what waits, then let go of the database. Closing twice does nothing."""
        await self.completions.close()
        await self.database.close()
        if self.gateway_lock is not None:
            self.gateway_lock.release()


async def open_store(
    url: str,
    durability: Durability = "process",
    group_commit_rows: int = 256,
    commit_timeout_s: float = 10.0,
    queue_rows: int = 2048,
    *,
    migrate: bool = True,
    exclusive_gateway: bool = False,
    check_power: bool = True,
    clock: Callable[[], float] = time.time,
) -> Store:
    """Open a SQLite file (made if missing) or a PostgreSQL database, and bring it up to date.

    With `migrate=False` the tables must be current; with `check_power=False` a server that cannot
    keep what `durability: power` promises is taken all the same, by what acknowledges no rows.
    `exclusive_gateway` is the gateway's: over SQLite a second one is refused. `clock` gives Unix
    seconds for leases and claims.

    Raises `ConfigError` for a URL, a second gateway or tables that cannot be used and for a server
    that does not do what `durability` promises, and `StoreUnavailableError` when the database does
    not answer.
    """
    database, lock = open_database(
        url, durability, commit_timeout_s, exclusive_gateway=exclusive_gateway
    )
    try:
        if check_power and durability == "power":
            await database.read(require_power)
        if migrate:
            await database.write(upgrade, timeout_s=MIGRATION_TIMEOUT_S)
        await database.read(require_current)
    except BaseException:
        await database.close()
        if lock is not None:
            lock.release()
        raise
    return Store(
        database=database,
        completions=Completions(
            database,
            group_commit_rows=group_commit_rows,
            commit_timeout_s=commit_timeout_s,
            queue_rows=queue_rows,
            clock=clock,
        ),
        policies=Policies(database, clock),
        evaluations=Evaluations(database),
        training=Training(database),
        leases=Leases(database, clock),
        access=Access(database, clock),
        key_usage=KeyUsage(database, clock),
        attempts=Attempts(database),
        idempotency=IdempotencyKeys(database, clock),
        stored=StoredCompletions(database),
        deletions=Deletions(database, clock),
        gateway_lock=lock,
    )


def open_database(
    url: str,
    durability: Durability = "process",
    timeout_s: float = 10.0,
    *,
    exclusive_gateway: bool = False,
) -> tuple[Database, GatewayLock | None]:
    """The database of a store, whatever its tables are; the lock if one gateway alone may serve.

    Raises as `open_store` does.
    """
    parsed = parse_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        file = database_file(parsed)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = GatewayLock(file) if exclusive_gateway else None
        except OSError as error:
            raise StoreUnavailableError(
                f"the store's folder {file.parent} cannot be used: {error.strerror}; check "
                "data_dir and its permissions"
            ) from error
        return SQLiteDatabase(parsed, durability, timeout_s), lock
    if backend in ("postgresql", "postgres"):
        return _open_postgres(parsed, durability, timeout_s), None
    raise ConfigError(f"store.url names {backend!r}; the store runs on sqlite and postgresql")


def _open_postgres(url: sa.URL, durability: Durability, timeout_s: float) -> Database:
    require_known_parameters(url)
    try:
        from bond_core.store.postgres import PostgresDatabase
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"store.url is PostgreSQL and {error.name} is missing: run "
            'pip install "bondserve[postgres]"'
        ) from None
    return PostgresDatabase(url, durability, timeout_s)
