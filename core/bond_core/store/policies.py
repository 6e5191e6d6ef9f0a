"""Policy versions, their states, and the alias that says which one is live."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from bond_core.errors import PolicyStateError
from bond_core.store.database import Database
from bond_core.store.records import PolicyRecord
from bond_core.store.tables import aliases, counters, policies, storable
from bond_core.types import REFERENCE_VERSION, PolicyState

ACTIVE_ALIAS = "active"

TRANSITIONS: Mapping[PolicyState, frozenset[PolicyState]] = MappingProxyType(
    {
        PolicyState.CHALLENGER: frozenset(
            {PolicyState.CANARY, PolicyState.ACTIVE, PolicyState.REJECTED}
        ),
        PolicyState.CANARY: frozenset(
            {PolicyState.ACTIVE, PolicyState.REJECTED, PolicyState.ROLLED_BACK}
        ),
        PolicyState.ACTIVE: frozenset({PolicyState.RETIRED, PolicyState.ROLLED_BACK}),
        PolicyState.RETIRED: frozenset({PolicyState.ACTIVE}),
        PolicyState.REJECTED: frozenset(),
        PolicyState.ROLLED_BACK: frozenset(),
    }
)
"""Where a version may go from each state; the last two are final."""


class Policies:
    """The registry of policy versions. Exactly one is active, and the alias names it."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def insert(self, record: PolicyRecord) -> None:
        """Add a version. Raises `PolicyStateError` if it exists, or if its parent does not."""
        if record.state is PolicyState.ACTIVE:
            raise PolicyStateError(
                f"{record.version} cannot be inserted as active: insert it as a challenger, then "
                "activate it"
            )
        row: dict[str, Any] = {
            "version": record.version,
            "state": record.state.value,
            "path": record.path,
            "parent": record.parent,
            "step": record.step,
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "reason": record.reason,
            "evaluation": record.evaluation,
        }
        try:
            await self._database.write(lambda c: c.execute(policies.insert(), row) and None)
        except IntegrityError as error:
            raise PolicyStateError(
                f"policy version {record.version} cannot be inserted: it exists already, or its "
                f"parent {record.parent} does not; take a new name from next_version()"
            ) from error

    async def get(self, version: str) -> PolicyRecord | None:
        """One version; of a name that no database can hold there is none."""
        found = await self._select(policies.c.version == storable(version))
        return found[0] if found else None

    async def all(self) -> list[PolicyRecord]:
        """Every version, the reference first."""
        return await self._select(sa.true())

    async def in_state(self, state: PolicyState) -> list[PolicyRecord]:
        """The versions in one state, oldest first."""
        return await self._select(policies.c.state == state.value)

    async def move(
        self, version: str, from_state: PolicyState, to_state: PolicyState, reason: str
    ) -> bool:
        """Change the state if it is still `from_state`; False if another process was first.

        Raises `PolicyStateError` for a change that is not in `TRANSITIONS`, and for one to or from
        active, which moves the alias too and is `activate`'s.
        """
        _check(version, from_state, to_state)
        if PolicyState.ACTIVE in (from_state, to_state):
            raise PolicyStateError(
                f"{version}: only activate() makes a version active or replaces the active one"
            )
        return await self._database.write(
            lambda c: _compare_and_set(c, version, from_state, to_state, reason, self._clock())
        )

    async def activate(
        self,
        version: str,
        reason: str,
        *,
        previous_becomes: PolicyState = PolicyState.RETIRED,
        expected: str | None = None,
    ) -> None:
        """Make a version live, in one transaction: the active one leaves, this one enters.

        A roll-back activates a retired version and passes `ROLLED_BACK` for the one that leaves.
        With `expected`, nothing changes unless that is the active version. Activating the active
        version changes nothing. Raises `PolicyStateError` for a version that does not exist or may
        not become active.
        """
        await self._database.write(
            lambda c: _activate(c, version, reason, previous_becomes, expected, self._clock())
        )

    async def active(self) -> str:
        """The version that `distilled` means: the reference until the first promotion."""
        return await self._database.read(_active)

    async def next_version(self) -> str:
        """A name that nobody else was given: `v0001`, `v0002`, ... One that is not used is lost."""
        query = (
            counters.update()
            .where(counters.c.name == "policy_version")
            .values(value=counters.c.value + 1)
            .returning(counters.c.value)
        )

        def allocate(connection: Connection) -> str:
            while True:
                version = f"v{connection.execute(query).scalar_one():04d}"
                taken = sa.select(policies.c.version).where(policies.c.version == version)
                if connection.execute(taken).first() is None:
                    return version

        return await self._database.write(allocate)

    async def _select(self, condition: sa.ColumnElement[bool]) -> list[PolicyRecord]:
        by_number = (sa.func.length(policies.c.version), policies.c.version)
        query = sa.select(policies).where(condition).order_by(*by_number)

        def select(connection: Connection) -> list[PolicyRecord]:
            rows = connection.execute(query).mappings()
            return [_record(row) for row in rows]

        return await self._database.read(select)


def _record(row: sa.RowMapping) -> PolicyRecord:
    return PolicyRecord(
        version=row["version"],
        state=PolicyState(row["state"]),
        path=row["path"],
        parent=row["parent"],
        step=row["step"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        reason=row["reason"],
        evaluation=row["evaluation"],
    )


def _check(version: str, from_state: PolicyState, to_state: PolicyState) -> None:
    allowed = TRANSITIONS[from_state]
    if to_state not in allowed:
        choices = " or ".join(sorted(allowed)) or "nothing, it is final"
        raise PolicyStateError(
            f"{version} cannot go from {from_state} to {to_state}; from there it can become "
            f"{choices}"
        )


def _compare_and_set(
    connection: Connection,
    version: str,
    from_state: PolicyState,
    to_state: PolicyState,
    reason: str,
    now: float,
) -> bool:
    changed = connection.execute(
        policies.update()
        .where(policies.c.version == version, policies.c.state == from_state.value)
        .values(state=to_state.value, reason=reason, updated_at=now)
    )
    return changed.rowcount == 1


def _active(connection: Connection) -> str:
    query = sa.select(aliases.c.version).where(aliases.c.name == ACTIVE_ALIAS)
    return connection.execute(query).scalar_one()


def _activate(
    connection: Connection,
    version: str,
    reason: str,
    previous_becomes: PolicyState,
    expected: str | None,
    now: float,
) -> None:
    # The alias row is the lock: whoever holds it is the only one to change what is active.
    lock = sa.select(aliases.c.version).where(aliases.c.name == ACTIVE_ALIAS).with_for_update()
    previous = connection.execute(lock).scalar_one()
    if expected is not None and previous != expected:
        raise PolicyStateError(
            f"{version} was not activated: {previous} is active, not {expected}; decide again"
        )
    if previous == version:
        return
    state = connection.execute(
        sa.select(policies.c.state).where(policies.c.version == version).with_for_update()
    ).scalar_one_or_none()
    if state is None:
        raise PolicyStateError(f"policy version {version} does not exist; insert it first")
    _check(version, PolicyState(state), PolicyState.ACTIVE)
    _check(previous, PolicyState.ACTIVE, previous_becomes)
    if previous == REFERENCE_VERSION and previous_becomes is PolicyState.ROLLED_BACK:
        raise PolicyStateError(f"{previous} is the reference and cannot be rolled back; retire it")
    gone = f"replaced by {version}: {reason}"
    _compare_and_set(connection, previous, PolicyState.ACTIVE, previous_becomes, gone, now)
    _compare_and_set(connection, version, PolicyState(state), PolicyState.ACTIVE, reason, now)
    connection.execute(
        aliases.update()
        .where(aliases.c.name == ACTIVE_ALIAS, aliases.c.version == previous)
        .values(version=version, updated_at=now)
    )
