"""API keys and sessions in the store: what is kept, what changes, and that no secret is."""

import hashlib
import re

import pytest
from databases import OpenStoreAt
from sqlalchemy import text

from bond_core.errors import InvalidRequestError
from bond_core.store import KeyLimits, Scope, Store
from bond_core.store.access import SESSIONS_PER_KEY
from bond_core.store.access_secrets import key_id_of

BOTH = {Scope.INFER, Scope.READ}


async def test_a_key_comes_back_as_it_was_made(database_url: str, open_store_at: OpenStoreAt):
    store = await open_store_at(database_url, clock=lambda: 1000.5)
    limits = KeyLimits(requests_per_minute=60, tokens_per_minute=2**31 - 1, concurrency=4)
    key, secret = await store.access.create(
        " shop \x00 ", BOTH, expires_at=2000.25, limits=limits, log_content=False, train=True
    )
    assert re.fullmatch(r"sk-bond-[0-9a-f]{12}-[\w-]{43}", secret)
    assert key_id_of(secret) == key.id
    assert key.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    plain, _ = await store.access.create("plain", [Scope.ADMIN])
    found = await store.access.all()
    assert {k.id: k for k in found}[plain.id] == plain
    kept = {k.id: k for k in found}[key.id]
    assert kept.name == "shop \ufffd"
    assert (kept.created_at, kept.expires_at, kept.last_used_at) == (1000.5, 2000.25, None)
    assert (kept.scopes, kept.limits) == (BOTH, limits)
    assert (kept.log_content, kept.train, plain.log_content, plain.train) == (
        False, True, None, None,
    )  # fmt: skip


async def test_no_column_holds_the_secret(store: Store):
    _, secret = await store.access.create("a", BOTH)
    key, _ = await store.access.create("b", BOTH)
    _, token = await store.access.begin_session(key.id, 60.0)
    for table in ("api_keys", "sessions"):
        rows = await store.database.read(
            lambda c, table=table: c.execute(text(f"SELECT * FROM {table}")).all()
        )
        assert secret[-43:] not in str(rows)
        assert token not in str(rows)


async def test_a_key_needs_a_name_and_a_scope(store: Store):
    with pytest.raises(InvalidRequestError, match="needs a name"):
        await store.access.create(" ", BOTH)
    with pytest.raises(InvalidRequestError, match="infer, read, admin"):
        await store.access.create("a", [])
    assert await store.access.all() == []


async def test_a_revoked_key_stays_and_its_sessions_end(
    database_url: str, open_store_at: OpenStoreAt
):
    now = [1000.0]
    store = await open_store_at(database_url, clock=lambda: now[0])
    key, _ = await store.access.create("a", BOTH)
    await store.access.begin_session(key.id, 60.0)
    now[0] = 1010.0
    assert await store.access.revoke(key.id)
    now[0] = 1020.0
    assert not await store.access.revoke(key.id)
    assert not await store.access.revoke("no such key")
    snapshot = await store.access.snapshot()
    assert snapshot is not None
    [kept] = snapshot.keys
    assert (kept.revoked_at, kept.why_refused(1020.0)) == (1010.0, "was revoked")
    assert snapshot.sessions == ()


async def test_a_snapshot_is_read_again_only_after_a_change(store: Store):
    first = await store.access.snapshot()
    assert first is not None
    assert (first.keys, first.sessions) == ((), ())
    assert await store.access.snapshot(first.revision) is None
    key, _ = await store.access.create("a", BOTH)
    second = await store.access.snapshot(first.revision)
    assert second is not None
    assert second.keys == (key,)
    session, _ = await store.access.begin_session(key.id, 60.0)
    third = await store.access.snapshot(second.revision)
    assert third is not None
    assert third.sessions == (session,)
    await store.access.touch({key.id: 5.0})  # no change that matters to a reader
    assert await store.access.snapshot(third.revision) is None
    await store.access.end_session(session.secret_sha256)
    fourth = await store.access.snapshot(third.revision)
    assert fourth is not None
    assert fourth.sessions == ()


async def test_the_last_use_never_goes_back(store: Store):
    key, _ = await store.access.create("a", BOTH)
    for at in (50.0, 40.0):
        await store.access.touch({key.id: at, "no such key": at})
    assert [k.last_used_at for k in await store.access.all()] == [50.0]


async def test_sessions_are_bounded_per_key_and_end_by_themselves(
    database_url: str, open_store_at: OpenStoreAt
):
    now = [1000.0]
    store = await open_store_at(database_url, clock=lambda: now[0])
    key, _ = await store.access.create("a", BOTH)
    other, _ = await store.access.create("b", BOTH)
    kept, _ = await store.access.begin_session(other.id, 1000.0)
    made = []
    for _ in range(SESSIONS_PER_KEY + 3):
        now[0] += 1.0
        made.append((await store.access.begin_session(key.id, 100.0))[0])
    snapshot = await store.access.snapshot()
    assert snapshot is not None
    assert set(snapshot.sessions) == {kept, *made[3:]}
    now[0] += 100.0
    later = await store.access.snapshot()
    assert later is not None
    assert later.sessions == (kept,)


def test_what_is_no_key_has_no_id():
    good = "sk-bond-0123456789ab-" + "A" * 43
    assert key_id_of(good) == "0123456789ab"
    for bad in ("", "sk-bond-", good[:-1], good + "A", good.upper(), " " + good, good + "\n"):
        assert key_id_of(bad) is None
