"""Gateways on a real socket, in the loop of the test, so that it can look into the engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from bond_core.config import BondConfig
from bond_core.engines.fake import FakeEngine
from bond_server.app import create_app
from bond_server.gateway import Gateway
from bond_server.http_protocol import bounded_by
from bond_server.serving import claim_socket

HI = [{"role": "user", "content": "where is my parcel?"}]


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that listens."""

    gateway: Gateway
    host: str
    port: int
    client: httpx.AsyncClient
    connections: Collection[Any]
    """Those that are open now."""

    @property
    def url(self) -> str:
        """Base URL, without a path."""
        return f"http://{self.host}:{self.port}"

    @property
    def engine(self) -> FakeEngine:
        """The engine behind it."""
        assert isinstance(self.gateway.engine, FakeEngine)
        return self.gateway.engine

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample at /metrics; 0 if there is none."""
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


Serve = Callable[[BondConfig], AbstractAsyncContextManager[Served]]


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals to the test run."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def serving(config: BondConfig) -> AsyncGenerator[Served]:
    """Serves a configuration on a free port until the block ends."""
    app = create_app(config)
    settings = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        http=bounded_by(config.access),
    )
    server = _Server(settings)
    with claim_socket("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        listener.listen(128)  # connections wait until the server takes them
        async with app.router.lifespan_context(app):
            running = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                async with httpx.AsyncClient(
                    base_url=f"http://{host}:{port}", trust_env=False, timeout=30
                ) as client:
                    connections = server.server_state.connections
                    yield Served(app.state.gateway, host, port, client, connections)
            finally:
                server.should_exit = True
                await running


@pytest.fixture
def serve() -> Serve:
    """`serving`, for tests that make their own configuration."""
    return serving


async def frames(response: httpx.Response) -> AsyncIterator[str]:
    """The events and comments of a stream, each without the empty line that ends it."""
    waiting = ""
    async for text in response.aiter_text():
        *whole, waiting = (waiting + text).split("\n\n")
        for frame in whole:
            yield frame
    assert waiting == ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a stream said, from its first byte to its last."""

    headers: httpx.Headers
    frames: list[str]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events that are JSON, in their order."""
        said = [frame.removeprefix("data: ") for frame in self.frames if frame[0] != ":"]
        return [json.loads(data) for data in said if data != "[DONE]"]

    @property
    def done(self) -> bool:
        """Whether the last event says that all has been said."""
        return self.frames[-1] == "data: [DONE]"

    def text(self, index: int = 0) -> str:
        """What the choice says, joined."""
        return "".join(said(choice) for choice in self.choices(index))

    def choices(self, index: int = 0) -> list[dict[str, Any]]:
        """The pieces of one choice."""
        return [
            choice
            for chunk in self.chunks
            for choice in chunk.get("choices", ())
            if choice["index"] == index
        ]


def said(choice: dict[str, Any]) -> str:
    """The text of a piece, in either dialect."""
    return choice["text"] if "text" in choice else choice["delta"].get("content", "")


async def told(served: Served, path: str, **body: Any) -> Told:
    """The whole of a streamed answer."""
    async with served.client.stream("POST", path, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            raise AssertionError((await response.aread()).decode())
        return Told(response.headers, [frame async for frame in frames(response)])
