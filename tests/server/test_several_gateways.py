"""Two gateways, real processes, over one PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from adapter_servers import AdapterServer, serving
from databases import OpenStoreAt, PostgresServer
from killed_gateway import Nursery, client_of, write_config
from published_adapters import challenger, publish
from tiny_models import tiny_adapter

from bond_core.config import load_config
from bond_core.store import Store
from bond_core.tokenizing import load_tokenizer

TOKENIZER_MODULES = (
    "bond_core.engines.vllm",
    "transformers.models.auto.tokenization_auto",
)
HI = {"messages": [{"role": "user", "content": "hi"}]}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two gateways and the store that they share."""

    config: Path
    pids: tuple[int, int]
    clients: tuple[httpx.AsyncClient, httpx.AsyncClient]
    store: Store


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery(*TOKENIZER_MODULES)
    yield started
    started.close()


@pytest.fixture
async def pair(
    nursery: Nursery, tmp_path: Path, postgres: PostgresServer, open_store_at: OpenStoreAt
) -> AsyncIterator[Pair]:
    url = postgres.migrated()
    config = write_config(tmp_path, url)
    document = yaml.safe_load(config.read_text())
    document["server"]["policy_poll_s"] = 0.1
    document["engine"]["delay_s"] = 0.05
    config.write_text(yaml.safe_dump(document))
    one, other = [await nursery.start(config) for _ in range(2)]
    async with client_of(one[1]) as first, client_of(other[1]) as second:
        yield Pair(config, (one[0], other[0]), (first, second), await open_store_at(url))
    await nursery.kill(one[0])
    await nursery.kill(other[0])


async def active_at(client: httpx.AsyncClient) -> str:
    return (await client.get("/readyz")).json()["active"]


async def test_rows_of_both_are_there_and_a_key_is_answered_once_by_either(pair: Pair) -> None:
    answers = await asyncio.gather(
        *(client.post("/v1/best-of-n", json=HI) for client in pair.clients for _ in range(10))
    )
    keyed = await asyncio.gather(
        *(
            client.post("/v1/best-of-n", json=HI, headers={"Idempotency-Key": "once"})
            for client in pair.clients
            for _ in range(3)
        )
    )
    later = await pair.clients[1].post(
        "/v1/best-of-n", json=HI, headers={"Idempotency-Key": "once"}
    )
    ids = [answer.json()["id"].removeprefix("chatcmpl-") for answer in answers]
    assert len(await pair.store.completions.get_many(ids)) == len(set(ids)) == 20
    assert {answer.content for answer in (*keyed, later)} == {keyed[0].content}
    assert sum("x-bond-replayed" not in answer.headers for answer in keyed) == 1
    assert await pair.store.completions.count() == 21


async def test_a_promotion_reaches_both_within_a_second(pair: Pair) -> None:
    """The fastest counts: what else this machine does is not the gateways'."""
    config = load_config(pair.config)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 6 and min(seconds) >= 1.0):
        version = f"v{len(seconds) + 1:04d}"
        path = await publish(config, version)
        await pair.store.policies.insert(challenger(version, path))
        async with asyncio.timeout(60):
            while await pair.store.policies.active() != version:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            began = time.perf_counter()
            while {await active_at(c) for c in pair.clients} != {version}:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        seconds.append(time.perf_counter() - began)
        answers = [await client.post("/v1/distilled", json=HI) for client in pair.clients]
        assert [answer.headers["x-bond-adapter"] for answer in answers] == [version] * 2
    assert min(seconds) < 1.0, seconds


async def test_a_dead_gateway_frees_its_keys_for_the_other(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    document = yaml.safe_load(pair.config.read_text())
    document["engine"]["delay_s"] = 600.0
    slow = tmp_path / "slow.yaml"
    slow.write_text(yaml.safe_dump(document))
    body, key = {**HI, "best_of": 4}, {"Idempotency-Key": "dies"}
    pid, url = await nursery.start(slow)
    async with client_of(url) as doomed:
        asking = asyncio.create_task(doomed.post("/v1/best-of-n", json=body, headers=key))
        keys = "SELECT count(*) FROM idempotency_keys WHERE completion_id IS NULL"
        async with asyncio.timeout(60):
            while not await pair.store.database.read(  # noqa: ASYNC110
                lambda c: c.exec_driver_sql(keys).scalar_one()
            ):
                await asyncio.sleep(0.002)
        await nursery.kill(pid)
        with pytest.raises(httpx.TransportError):
            await asking
    # its lease runs out
    expire = "UPDATE idempotency_keys SET expires_at = 0"
    await pair.store.database.write(lambda c: c.exec_driver_sql(expire).close())
    answered = await pair.clients[1].post("/v1/best-of-n", json=body, headers=key)
    assert answered.status_code == 200
    assert await pair.store.completions.count() == 1


async def test_a_dead_controller_is_succeeded(pair: Pair, nursery: Nursery) -> None:
    def controls(text: str) -> bool:
        return "bond_controller 1.0" in text

    holds = [controls((await client.get("/metrics")).text) for client in pair.clients]
    assert sorted(holds) == [False, True]
    holder = holds.index(True)
    await nursery.kill(pair.pids[holder])
    path = await publish(load_config(pair.config), "v0001")
    await pair.store.policies.insert(challenger("v0001", path))
    # its lease runs out
    expire = "UPDATE leases SET expires_at = 0 WHERE name = 'controller'"
    await pair.store.database.write(lambda c: c.exec_driver_sql(expire).close())
    survivor = pair.clients[1 - holder]
    async with asyncio.timeout(60):
        while await active_at(survivor) != "v0001":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await survivor.post("/v1/distilled", json=HI)).headers["x-bond-adapter"] == "v0001"


async def test_a_controller_that_dies_in_the_middle_of_a_fan_out_is_finished_by_another(
    nursery: Nursery,
    tmp_path: Path,
    tiny_policy_path: Path,
    postgres: PostgresServer,
    open_store_at: OpenStoreAt,
) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    url = postgres.migrated()
    store = await open_store_at(url)
    config = write_config(tmp_path, url)
    document = yaml.safe_load(config.read_text())
    async with (
        serving(AdapterServer(tokenizer)) as first,
        serving(AdapterServer(tokenizer)) as second,
    ):
        document["server"]["policy_poll_s"] = 0.1
        document["model"] = {"path": str(tiny_policy_path), "name": "tiny"}
        document["engine"] = {"type": "vllm", "urls": [first.url, second.url]}
        config.write_text(yaml.safe_dump(document))
        loaded = load_config(config)
        path = await publish(loaded, "v0001", save=lambda folder: tiny_adapter(folder, seed=1))
        for server in (first, second):
            server.names.clear()  # as after a restart: the probe was measured on them
        gateways = [await nursery.start(config) for _ in range(2)]
        async with client_of(gateways[0][1]) as one, client_of(gateways[1][1]) as other:
            controls = "bond_controller 1.0" in (await one.get("/metrics")).text
            (holder, _), survivor = (gateways[0], other) if controls else (gateways[1], one)
            second.hold_loads_of = "v0001"
            await store.policies.insert(challenger("v0001", path))
            async with asyncio.timeout(60):
                await second.held.wait()
                while not first.has("v0001"):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            await nursery.kill(holder)  # one server has the version, the other has not
            second.release.set()
            assert not second.has("v0001")
            assert await store.policies.active() == "v0000"
            expire = "UPDATE leases SET expires_at = 0 WHERE name = 'controller'"
            await store.database.write(lambda c: c.exec_driver_sql(expire).close())

            async with asyncio.timeout(60):
                while await active_at(survivor) != "v0001":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert first.has("v0001")
            assert second.has("v0001")
            assert await store.policies.active() == "v0001"
            answers = [await survivor.post("/v1/distilled", json=HI) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200] * 4
            assert {answer.headers["x-bond-adapter"] for answer in answers} == {"v0001"}
        for pid, _ in gateways:
            await nursery.kill(pid)
