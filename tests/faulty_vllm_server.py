"""A server with the routes of a vLLM server, which fails in the way that a test asks for.

It answers every chat with the same tokens, until `fault` is set: what answers in its place.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kept_port import KeptPort

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]

MODEL = "served"


class FaultyVllmServer:
    """Counts the chats that it was asked for, after those of the gateway's start."""

    def __init__(self) -> None:
        self._port = KeptPort()
        self.fault: Fault | None = None
        self.asked = 0
        self.traceparents: list[str | None] = []
        """Of each chat."""
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The base URL; the same after it was stopped and started again."""
        return f"http://127.0.0.1:{self._port.number}"

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/health", _nothing)
        app.router.add_get("/metrics", _nothing)
        app.router.add_get("/version", _version)
        app.router.add_get("/v1/models", _models)
        app.router.add_post("/tokenize", _tokenize)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", _score)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._port.listener()).start()

    async def stop(self) -> None:
        """Go away, with all connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def close(self) -> None:
        """Give its port up."""
        self._port.close()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked += 1
        self.traceparents.append(request.headers.get("traceparent"))
        if self.fault is not None:
            return await self.fault(request)
        choices = [_choice(index, body) for index in range(body["n"])]
        return web.json_response({"choices": choices, "prompt_token_ids": [1, 2]})


@asynccontextmanager
async def running_vllm() -> AsyncIterator[FaultyVllmServer]:
    """One of them, on a free port."""
    server = FaultyVllmServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        server.close()


async def hangs(request: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.sleep(60)
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Closes the connection instead of answering."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def says(text: str, status: int = 200, content_type: str = "application/json") -> Fault:
    """Answers this, whatever is asked."""

    async def respond(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=status, content_type=content_type)

    return respond


def _choice(index: int, body: dict[str, Any]) -> dict[str, Any]:
    logprobs = {"content": [{"token": "a", "logprob": 0.0, "top_logprobs": []}]}
    return {
        "index": index,
        "message": {"role": "assistant", "content": "a" * (index + 1)},
        "finish_reason": "stop",
        "token_ids": [5],
        "logprobs": logprobs,
    }


async def _nothing(request: web.Request) -> web.Response:
    return web.Response(text="")


async def _version(request: web.Request) -> web.Response:
    return web.json_response({"version": "0.32.0"})


async def _models(request: web.Request) -> web.Response:
    model = {"id": MODEL, "root": "", "max_model_len": 256, "parent": None}
    return web.json_response({"data": [model]})


async def _tokenize(request: web.Request) -> web.Response:
    return web.json_response({"tokens": [1, 2]})


async def _score(request: web.Request) -> web.Response:
    prompts = json.loads(await request.text())["prompt"]
    choices = [
        {"index": i, "prompt_logprobs": [None, *({str(t): {"logprob": 0.0}} for t in p[1:])]}
        for i, p in enumerate(prompts)
    ]
    return web.json_response({"choices": choices})
