"""What a server that came back is given, and connections that it closed while they were idle."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from bond_core.engines.base import TokenScorer
from bond_core.engines.vllm.adapters import Adapter, AdapterFanOut
from bond_core.engines.vllm.connection import Connection
from bond_core.engines.vllm.fleet import Fleet
from bond_core.engines.vllm.replica import Replica
from bond_core.engines.vllm.scoring import ScoringAt
from bond_core.errors import AdapterError, ProbeError

KEPT_S = 0.5


@dataclass
class Server:
    """Holds names of adapters as vLLM does; its files do not matter here."""

    names: set[str] = field(default_factory=set)
    url: str = ""

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.names]})

    async def load(self, request: web.Request) -> web.Response:
        self.names.add((await request.json())["lora_name"])
        return web.Response()

    async def unload(self, request: web.Request) -> web.Response:
        self.names.discard((await request.json())["lora_name"])
        return web.Response()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made, app = Server(), web.Application()
    app.router.add_get("/v1/models", made.models)
    app.router.add_post("/v1/load_lora_adapter", made.load)
    app.router.add_post("/v1/unload_lora_adapter", made.unload)
    runner = web.AppRunner(app, shutdown_timeout=0.1, keepalive_timeout=KEPT_S)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def replica(server: Server) -> AsyncIterator[Replica]:
    made = Replica(Connection(server.url, None, 60.0, 20.0), 3)
    yield made
    await made.connection.close()


async def refuse(where: TokenScorer) -> None:
    raise ProbeError("not this version")


def adapter(version: str, *, sound: bool) -> Adapter:
    check = None if sound else refuse
    return Adapter(version, f"{version}-abc", Path(version), f"/adapters/{version}", check)


async def test_a_version_that_fails_its_probe_there_costs_the_server_no_other(
    server: Server, replica: Replica
) -> None:
    fan_out = AdapterFanOut(Fleet([replica], 1.0, 20.0), ScoringAt)
    versions = [("v0000", True), ("v0001", False), ("v0002", True)]
    await fan_out.restore(replica, [adapter(name, sound=sound) for name, sound in versions])
    assert server.names == {"v0000-abc", "v0002-abc"}
    assert replica.adapters == server.names


async def test_without_the_reference_a_server_is_not_ready(
    server: Server, replica: Replica
) -> None:
    fan_out = AdapterFanOut(Fleet([replica], 1.0, 20.0), ScoringAt)
    with pytest.raises(AdapterError):
        await fan_out.restore(replica, [adapter("v0000", sound=False)])
    assert server.names == set()


async def test_a_request_survives_a_pool_of_connections_that_the_server_closed(
    server: Server, replica: Replica
) -> None:
    """By POST, which no library repeats by itself; the end shows as a reset or as a silence."""
    await asyncio.gather(*(replica.load(f"v{i}", "/a", 60.0) for i in range(5)))
    time.sleep(3 * KEPT_S)  # noqa: ASYNC251 - a loop too busy to see them closed
    await replica.load("v9", "/a", 60.0)
    assert server.names == {"v0", "v1", "v2", "v3", "v4", "v9"}
