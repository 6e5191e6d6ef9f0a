"""A server with the routes of a vLLM pooling server, which fails in the way that a test asks for.

It scores honestly by a formula of the tokens, until `fault` is set: a function of the request and
the honest answer's data that answers in its place, or returns None to let the honest answer go.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kept_port import KeptPort
from tiny_models import make_tokenizer

Tokens = tuple[int, ...]
Fault = Callable[[web.Request, list[dict[str, Any]]], Awaitable[web.StreamResponse | None]]

MODEL = "tiny-reward"
MAX_TOKENS = 200


class FaultyPoolingServer:
    """What it was asked, and how it answers. `max_running` counts scoring requests at once."""

    def __init__(self) -> None:
        self._port = KeptPort()
        self.tokenizer = make_tokenizer()
        self.models: list[str] = [MODEL]
        self.root = "rewards/tiny"
        self.key: str | None = None
        self.formula = formula
        self.switch: Callable[[float, bool], float] = sigmoid_if
        self.fault: Fault | None = None
        self.can_tokenize = True
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.traceparents: list[str | None] = []
        """Of each scoring request."""
        self.running = self.max_running = 0
        self.cancelled = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The base URL; the same after it was stopped and started again."""
        return f"http://127.0.0.1:{self._port.number}"

    @property
    def asked(self) -> list[list[Tokens]]:
        """The sequences of each scoring request, in the order of arrival."""
        return [self._sequences(body) for body in self.bodies]

    def tokens(self, *turns: tuple[str, str]) -> Tokens:
        """A conversation as the tiny models' template writes it."""
        text = "".join(f"<|{role}|>{content}<|end|>" for role, content in turns)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def forget(self) -> None:
        """Count from here on."""
        self.bodies.clear()
        self.max_running = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/classify", self._classify)
        app.router.add_post("/tokenize", self._tokenize)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._port.listener()).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None

    def close(self) -> None:
        """Give its port up."""
        self._port.close()

    def _sequences(self, body: dict[str, Any]) -> list[Tokens]:
        if "messages" in body:
            return [self.tokens(*((m["role"], m["content"]) for m in body["messages"]))]
        return [tuple(tokens) for tokens in body["input"]]

    async def _list(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        listed = [{"id": m, "root": self.root, "max_model_len": MAX_TOKENS} for m in self.models]
        return web.json_response({"object": "list", "data": listed})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.can_tokenize:
            return web.json_response({"detail": "Not Found"}, status=404)
        [tokens] = self._sequences(await request.json())
        return web.json_response({"count": len(tokens), "tokens": list(tokens)})

    async def _classify(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.traceparents.append(request.headers.get("traceparent"))
        self.keys.add(request.headers.get("Authorization"))
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        sequences = self._sequences(body)
        data = [
            item(index, self.switch(self.formula(tokens), body["use_activation"]))
            for index, tokens in enumerate(sequences)
        ]
        answer = await self.fault(request, data) if self.fault is not None else None
        if answer is not None:
            return answer
        if any(len(tokens) > MAX_TOKENS for tokens in sequences):
            longest = max(map(len, sequences))
            return vllm_error(
                400,
                f"This model's maximum context length is {MAX_TOKENS} tokens. However, your prompt "
                f"contains {longest} input tokens",
            )
        return web.json_response({"object": "list", "model": MODEL, "data": data})


def formula(tokens: Tokens) -> float:
    """A number that differs between sequences; below 0 for most."""
    return math.sin(sum((i + 1) * token for i, token in enumerate(tokens))) * 3 - 1


def sigmoid_if(score: float, activation: bool) -> float:
    """What vLLM makes of a logit."""
    return 0.5 + 0.5 * math.tanh(score / 2) if activation else score


def item(index: int, score: object) -> dict[str, Any]:
    """One element of the data of `/classify`."""
    return {"index": index, "label": "LABEL_0", "probs": [score], "num_classes": 1}


def vllm_error(status: int, message: str) -> web.Response:
    """An error in vLLM's form."""
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


async def hang(request: web.Request, data: list[dict[str, Any]]) -> None:
    """Never answer."""
    await asyncio.sleep(30)


async def reset(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
    """End the connection in place of an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def no_http(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
    """Speak another protocol."""
    assert isinstance(request.transport, asyncio.Transport)
    request.transport.write(b"SMTP ready\r\n\r\n")
    request.transport.close()
    return web.Response()


async def broken_off(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
    """Begin an answer."""
    assert isinstance(request.transport, asyncio.Transport)
    request.transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n{"data": [')
    request.transport.close()
    return web.Response()


async def redirected(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
    """Send the caller elsewhere."""
    return web.Response(status=302, headers={"Location": "/v1/models"})


@asynccontextmanager
async def running_server() -> AsyncIterator[FaultyPoolingServer]:
    """A server that is up, and down when the block ends."""
    server = FaultyPoolingServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        server.close()
