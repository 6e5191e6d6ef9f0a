"""API keys and browser sessions in the store."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.errors import InvalidRequestError
from bond_core.store.access_records import (
    NO_LIMITS,
    AccessSnapshot,
    ApiKey,
    KeyLimits,
    Scope,
    Session,
)
from bond_core.store.access_secrets import (
    digest_of,
    key_id_of,
    new_key,
    new_key_id,
    new_session_token,
)
from bond_core.store.access_tables import KEYS_COUNTER, api_keys, sessions
from bond_core.store.database import Database, in_chunks
from bond_core.store.tables import counters

SESSIONS_PER_KEY = 32
"""Newer ones end the oldest: what a key can make stays bounded."""

_revision = sa.select(counters.c.value).where(counters.c.name == KEYS_COUNTER)
_raise_revision = (
    counters.update().where(counters.c.name == KEYS_COUNTER).values(value=counters.c.value + 1)
)


class Access:
    """Keys and sessions. Every change raises a revision, so that a reader sees by one number
    whether what it has read still stands."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        name: str,
        scopes: Collection[Scope],
        *,
        expires_at: float | None = None,
        limits: KeyLimits = NO_LIMITS,
        log_content: bool | None = None,
        train: bool | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it and its secret text, which nothing can show again.

        Raises `InvalidRequestError` for a name without letters or for no scope.
        """
        if not name.strip():
            raise InvalidRequestError("a key needs a name, to tell it from others", param="name")
        if not scopes:
            known = ", ".join(Scope)
            raise InvalidRequestError(f"a key needs a scope: {known}", param="scopes")
        key_id = new_key_id()
        secret = new_key(key_id)
        key = ApiKey(
            id=key_id,
            name=name.strip(),
            secret_sha256=digest_of(secret),
            scopes=frozenset(scopes),
            created_at=self._clock(),
            expires_at=expires_at,
            limits=limits,
            log_content=log_content,
            train=train,
        )

        def insert(connection: Connection) -> None:
            connection.execute(_raise_revision)
            connection.execute(api_keys.insert(), [_row(key)])

        await self._database.write(insert)
        return key, secret

    async def adopt(self, name: str, scopes: Collection[Scope], secret: str) -> tuple[ApiKey, bool]:
        """Put a key that was made elsewhere into the store; returns it, and False if it was there
        before, revoked perhaps, and stays as it is.

        Raises `InvalidRequestError` for text that is no key, or whose id another key has.
        """
        key_id = key_id_of(secret)
        if key_id is None:
            raise InvalidRequestError(
                "the text is no key: one is sk-bond-, 12 hexadecimal digits, a hyphen and 43 "
                "random characters (32 bytes in the URL-safe alphabet of base64)"
            )
        key = ApiKey(
            id=key_id,
            name=name,
            secret_sha256=digest_of(secret),
            scopes=frozenset(scopes),
            created_at=self._clock(),
        )

        def insert(connection: Connection) -> ApiKey | None:
            query = sa.select(api_keys).where(api_keys.c.id == key_id)
            row = connection.execute(query).mappings().first()
            if row is not None:
                return _key(row)
            connection.execute(_raise_revision)
            connection.execute(api_keys.insert(), [_row(key)])
            return None

        there = await self._database.write(insert)
        if there is None:
            return key, True
        if there.secret_sha256 != key.secret_sha256:
            raise InvalidRequestError(f"another key has the id {key_id}: make a new one")
        return there, False

    async def all(self) -> list[ApiKey]:
        """Every key that was ever made, revoked ones too, oldest first."""
        return await self._database.read(_keys)

    async def revoke(self, key_id: str) -> bool:
        """End a key and its sessions for good; False if it does not exist or was revoked before."""

        def end(connection: Connection) -> bool:
            connection.execute(_raise_revision)
            connection.execute(sessions.delete().where(sessions.c.key_id == key_id))
            changed = connection.execute(
                api_keys.update()
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
            return changed.rowcount == 1

        return await self._database.write(end)

    async def touch(self, used: Mapping[str, float]) -> None:
        """Note when keys were last used; an earlier time than the one that stands is dropped."""

        def note(connection: Connection) -> None:
            for key_id, at in used.items():
                older = sa.or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < at)
                connection.execute(
                    api_keys.update().where(api_keys.c.id == key_id, older).values(last_used_at=at)
                )

        await self._database.write(note)

    async def begin_session(self, key_id: str, lasts_s: float) -> tuple[Session, str]:
        """Start a session of a key; returns it and the token for the cookie, of which only the
        hash is kept. Sessions that are over are swept out."""
        token = new_session_token()
        now = self._clock()
        session = Session(digest_of(token), key_id, now, now + lasts_s)

        def insert(connection: Connection) -> None:
            connection.execute(_raise_revision)
            connection.execute(sessions.delete().where(sessions.c.expires_at <= now))
            newest_first = (
                sa.select(sessions.c.secret_sha256)
                .where(sessions.c.key_id == key_id)
                .order_by(sessions.c.created_at.desc(), sessions.c.secret_sha256)
            )
            held = connection.execute(newest_first).scalars().all()
            for chunk in in_chunks(held[SESSIONS_PER_KEY - 1 :]):
                connection.execute(sessions.delete().where(sessions.c.secret_sha256.in_(chunk)))
            connection.execute(
                sessions.insert(),
                [
                    {
                        "secret_sha256": session.secret_sha256,
                        "key_id": key_id,
                        "created_at": now,
                        "expires_at": session.expires_at,
                    }
                ],
            )

        await self._database.write(insert)
        return session, token

    async def end_session(self, secret_sha256: str) -> None:
        """End a session; one that is over already is no error."""

        def end(connection: Connection) -> None:
            connection.execute(_raise_revision)
            connection.execute(sessions.delete().where(sessions.c.secret_sha256 == secret_sha256))

        await self._database.write(end)

    async def snapshot(self, known_revision: int | None = None) -> AccessSnapshot | None:
        """All keys and sessions, or None if they still are what they were at `known_revision`."""

        def read(connection: Connection) -> AccessSnapshot | None:
            # the revision first: a change in between is then found at the next look
            revision = connection.execute(_revision).scalar_one()
            if revision == known_revision:
                return None
            running = sessions.c.expires_at > self._clock()
            rows = connection.execute(sa.select(sessions).where(running)).mappings()
            return AccessSnapshot(
                revision, tuple(_keys(connection)), tuple(Session(**row) for row in rows)
            )

        return await self._database.read(read)


def _keys(connection: Connection) -> list[ApiKey]:
    query = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
    return [_key(row) for row in connection.execute(query).mappings()]


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "secret_sha256": key.secret_sha256,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "requests_per_minute": key.limits.requests_per_minute,
        "tokens_per_minute": key.limits.tokens_per_minute,
        "concurrency": key.limits.concurrency,
        "log_content": key.log_content,
        "train": key.train,
    }


def _key(row: sa.RowMapping) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        secret_sha256=row["secret_sha256"],
        scopes=frozenset(Scope(scope) for scope in row["scopes"]),
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        limits=KeyLimits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrency"]),
        log_content=row["log_content"],
        train=row["train"],
    )
