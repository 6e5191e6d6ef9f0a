"""The keys that a gateway knows: how soon a change holds, and how old they may be."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from api_keys import bearer, make_key
from running_gateway import MakeConfig, Run, eventually

from bond_core.engines.fake import FakeEngine
from bond_core.errors import StoreUnavailableError
from bond_core.store import Scope
from bond_server.access import keyring

HI = {"messages": [{"role": "user", "content": "hi"}]}


async def test_a_change_holds_within_the_configured_time(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    config = make_config(
        access={"refresh_s": 0.05}, store={"url": database_url}, server={"policy_poll_s": 60}
    )
    async with run(config) as running:
        status: list[int] = []

        async def post(secret: str) -> int:
            response = await running.client.post("/v1/distilled", json=HI, headers=bearer(secret))
            return response.status_code

        async def becomes(secret: str, code: int) -> None:
            async def has() -> bool:
                status.append(await post(secret))
                return status[-1] == code

            await eventually(has, timeout_s=30)  # 0.05 s, and never the poll's 60 s

        access = running.gateway.store.access
        first, first_secret = await access.create("first", {Scope.INFER})
        await becomes("none", 401)  # one key exists: who has none is out
        assert await post(first_secret) == 200
        _, second_secret = await access.create("second", {Scope.INFER})
        await becomes(second_secret, 200)
        assert await access.revoke(first.id)
        await becomes(first_secret, 401)
        assert await post(second_secret) == 200
        for key in await access.all():
            await access.revoke(key.id)
        await becomes(second_secret, 401)
        assert await post("none") == 401  # the last revocation does not open the gateway
    async with run(config) as running:
        assert (await running.post("/v1/distilled")).status_code == 401


async def test_an_expired_key_says_so(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["infer"], expires_at=time.time() - 1)
        revoked, revoked_secret = await make_key(running, ["infer"])
        await running.gateway.store.access.revoke(revoked.id)
        await running.gateway.gatekeeper.keyring.refresh()
        for text, says in ((secret, "has expired"), (revoked_secret, "was revoked")):
            response = await running.client.post("/v1/distilled", json=HI, headers=bearer(text))
            assert response.status_code == 401
            assert says in response.json()["error"]["message"]


async def test_no_request_asks_the_store_for_its_key(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config(access={"refresh_s": 10})) as running:
        _, secret = await make_key(running, ["infer", "read"])
        with monkeypatch.context() as without_database:
            without_database.setattr(running.gateway.store.access, "_database", None)
            for _ in range(5):
                answer = await running.client.post("/v1/distilled", json=HI, headers=bearer(secret))
                assert answer.status_code == 200
                assert (await running.client.get("/v1/policies", headers=bearer(secret))).is_success


async def test_a_check_is_fast(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(access={"refresh_s": 10})) as running:
        for _ in range(100):
            await running.gateway.store.access.create("another", {Scope.INFER})
        _, secret = await make_key(running, ["infer"])
        ring, times = running.gateway.gatekeeper.keyring, []
        for _ in range(2000):
            started = time.perf_counter()
            ring.key_of(secret)
            times.append(time.perf_counter() - started)
    assert sorted(times)[len(times) // 2] < 50e-6


async def test_keys_not_read_for_long_let_nobody_in(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config(access={"refresh_s": 0.01})) as running:
        _, secret = await make_key(running, ["infer"])
        access = running.gateway.store.access
        real = access.snapshot

        async def away(_: int | None = None) -> None:
            raise StoreUnavailableError("the store is away")

        monkeypatch.setattr(type(access), "snapshot", lambda self, known=None: away(known))
        monkeypatch.setattr(keyring, "STALE_AFTER_S", 0.1)

        async def answers(code: int) -> bool:
            response = await running.client.post("/v1/distilled", json=HI, headers=bearer(secret))
            return response.status_code == code

        await eventually(lambda: answers(503))
        refused = await running.client.post("/v1/distilled", json=HI, headers=bearer(secret))
        assert refused.status_code == 503
        assert "may have been revoked" in refused.json()["error"]["message"]
        assert (await running.client.get("/healthz")).status_code == 200
        monkeypatch.setattr(type(access), "snapshot", lambda self, known=None: real(known))
        await eventually(lambda: answers(200))


async def test_after_a_slow_start_the_keys_are_fresh(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, passed_s = FakeEngine.start, [0.0]

    async def slow_start(engine: FakeEngine) -> None:
        passed_s[0] += 600.0
        await start(engine)

    config = make_config(access={"refresh_s": 10})
    async with run(config) as running:
        _, secret = await make_key(running, ["infer"])
    monkeypatch.setattr(FakeEngine, "start", slow_start)
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + passed_s[0])
    monkeypatch.setattr(keyring, "time", clock)
    async with run(config) as running:
        response = await running.client.get("/v1/models", headers=bearer(secret))
        assert passed_s == [600.0]
        assert response.status_code == 200


async def test_a_look_that_is_answered_late_does_not_undo_a_later_one(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config(access={"refresh_s": 10})) as running:
        ring, access = running.gateway.gatekeeper.keyring, running.gateway.store.access
        real, looked, go_on = type(access).snapshot, asyncio.Event(), asyncio.Event()

        async def answered_late(self: Any, known: int | None = None) -> Any:
            found = await real(self, known)
            looked.set()
            await go_on.wait()
            return found

        await access.create("first", {Scope.INFER})
        with monkeypatch.context() as patched:
            patched.setattr(type(access), "snapshot", answered_late)
            late = asyncio.create_task(ring.refresh())
            await looked.wait()
        key, secret = await make_key(running, ["infer"])
        go_on.set()
        await late
        assert ring.key_of(secret).id == key.id


async def test_the_last_use_is_written_at_the_end(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    config = make_config(store={"url": database_url})
    async with run(config) as running:
        used, secret = await make_key(running, ["infer"])
        await make_key(running, ["infer"])
        before = time.time()
        await running.client.post("/v1/distilled", json=HI, headers=bearer(secret))
        after = time.time()
    async with run(config) as running:
        keys = {key.id: key for key in await running.gateway.store.access.all()}
    last = keys.pop(used.id).last_used_at
    assert last is not None
    assert before <= last <= after
    assert [key.last_used_at for key in keys.values()] == [None]
