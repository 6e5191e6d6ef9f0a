"""Servers that fail in the ways that a test asks for, and a fleet over three of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from bond_core.engines.vllm.connection import Connection
from bond_core.engines.vllm.fleet import Fleet
from bond_core.engines.vllm.replica import Replica

SERVER_KEEPS_S = 2.5
"""After which these servers close an idle connection; vLLM's do after 5 s."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A server whose behaviour a test sets; it counts what reaches it."""

    def __init__(self) -> None:
        self.behaviour: Handler = self.answers
        self.healthy = True
        self.names = ["base"]
        self.asked = 0
        self.url = ""

    async def answers(self, request: web.Request) -> web.Response:
        return web.json_response({"from": self.url})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return await self.behaviour(request)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.names]})


async def broken_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hanging(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def failing(status: int, message: str) -> Handler:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": message}}, status=status)

    return respond


@pytest.fixture
async def servers() -> AsyncIterator[list[Server]]:
    """Three of them, on free ports."""
    made: list[Server] = []
    runners: list[web.AppRunner] = []
    for _ in range(3):
        server = Server()
        app = web.Application()
        app.router.add_get("/health", server.health)
        app.router.add_get("/v1/models", server.models)
        app.router.add_post("/work", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, keepalive_timeout=SERVER_KEEPS_S)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        made.append(server)
        runners.append(runner)
    yield made
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def fleet(servers: list[Server]) -> AsyncIterator[Fleet]:
    made = fleet_over(servers)
    yield made
    await made.close()


def fleet_over(servers: list[Server], timeout_s: float = 60.0, failures: int = 3) -> Fleet:
    replicas = [
        Replica(Connection(s.url, "key", timeout_s=timeout_s, connect_timeout_s=20.0), failures)
        for s in servers
    ]
    for replica in replicas:
        replica.admit()
    return Fleet(replicas, every_s=0.02, timeout_s=20.0)


async def work(replica: Replica) -> Any:
    return await replica.connection.post("/work", {})


async def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
