"""Servers that speak the routes of vLLM which versions need: adapters, rendering, scores.

There is no model: an answer is one token, and the log-probability of any token depends on the name
of the version alone, so that probes can tell versions apart.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from bond_core.engines.rendering import render_prompt
from bond_core.types import Message

LOGPROB = {"v0001": -1.0, "v0002": -2.0}


class AdapterServer:
    """Holds names of adapters; a load can be held up half way."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.names: set[str] = set()
        self.url = ""
        self.hold_loads_of = ""
        """Loads of versions with this prefix do not come back until `release` is set."""
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    def has(self, version: str) -> bool:
        """Whether an adapter of this version is loaded, under any name."""
        return any(name.startswith(f"{version}-") for name in self.names)

    async def models(self, _: web.Request) -> web.Response:
        base = {"id": "tiny", "root": "", "max_model_len": 256, "parent": None}
        adapters = [{"id": name, "parent": "tiny"} for name in sorted(self.names)]
        return web.json_response({"data": [base, *adapters]})

    async def load(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.hold_loads_of and name.startswith(self.hold_loads_of):
            self.hold_loads_of = ""
            self.held.set()
            await self.release.wait()
            return _error(500, "the one who asked has gone")
        if name in self.names:
            return _error(400, "The lora adapter has already been loaded.")
        self.names.add(name)
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.names:
            return _error(404, f"{name} cannot be found.")
        self.names.discard(name)
        return web.Response(text="Success")

    async def tokenize(self, request: web.Request) -> web.Response:
        messages = [Message(m["role"], m["content"]) for m in (await request.json())["messages"]]
        return web.json_response({"tokens": list(render_prompt(self._tokenizer, messages))})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] not in {"tiny", *self.names}:
            return _error(404, f"The model `{body['model']}` does not exist.")
        parts = {"token_ids": [5], "logprobs": {"content": [{"logprob": 0.0}]}}
        last = {"index": 0, "finish_reason": "stop", **parts}
        if not body.get("stream"):
            choices = [last | {"index": i, "message": {"content": "a"}} for i in range(body["n"])]
            return web.json_response({"choices": choices, "prompt_token_ids": [1, 2]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chunk = {"choices": [last | {"delta": {"content": "a"}}], "prompt_token_ids": [1, 2]}
        await response.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())
        return response

    async def score(self, request: web.Request) -> web.Response:
        body = await request.json()
        logprob = LOGPROB.get(body["model"].partition("-")[0], 0.0)
        choices = [
            {
                "index": index,
                "prompt_logprobs": [None, *({str(t): {"logprob": logprob}} for t in tokens[1:])],
            }
            for index, tokens in enumerate(body["prompt"])
        ]
        return web.json_response({"choices": choices})


async def _nothing(_: web.Request) -> web.Response:
    return web.Response()


async def _release(_: web.Request) -> web.Response:
    return web.json_response({"version": "0.32.0"})


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(text='vllm:lora_requests_info{max_lora="8"} 1.0\n')


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@asynccontextmanager
async def serving(server: AdapterServer) -> AsyncIterator[AdapterServer]:
    """Listen until the end of the block."""
    app = web.Application()
    app.router.add_get("/health", _nothing)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/version", _release)
    app.router.add_get("/metrics", _metrics)
    app.router.add_post("/tokenize", server.tokenize)
    app.router.add_post("/v1/load_lora_adapter", server.load)
    app.router.add_post("/v1/unload_lora_adapter", server.unload)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.score)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.release.set()
        await runner.cleanup()
