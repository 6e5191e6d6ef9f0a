"""The engine over servers that speak vLLM's HTTP without a model: what others do to them, and what
comes back changed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tiny_models import tiny_adapter, tiny_policy_path

from bond_core.config import ModelConfig, VllmEngineConfig
from bond_core.engines.base import TokenScorer
from bond_core.engines.rendering import render_prompt
from bond_core.engines.vllm import VllmEngine
from bond_core.errors import AdapterError, EngineUnavailableError, ModelLoadError
from bond_core.tokenizing import load_tokenizer
from bond_core.types import Message, SamplingParams

__all__ = ["tiny_policy_path"]

PROMPT = [Message("user", "Where is my order?")]
PARAMS = SamplingParams(max_tokens=4)


class Server:
    """What vLLM's routes answer, and the names that it holds."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.names: set[str] = set()
        self.max_model_len, self.max_lora, self.priorities = 256, 8, True
        self.version = "0.32.0"
        self.only_v1 = False
        self.hold: asyncio.Event | None = None
        self.scoring: Callable[[], web.Response | None] = lambda: None
        self.rendering = self.rendered
        self.loading = self.loaded
        self.chats: list[dict[str, Any]] = []
        self.url = ""

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=404 if self.only_v1 else 200)

    async def models(self, request: web.Request) -> web.Response:
        base = {"id": "tiny", "root": "", "max_model_len": self.max_model_len, "parent": None}
        adapters = [{"id": name, "parent": "tiny"} for name in sorted(self.names)]
        return web.json_response({"data": [base, *adapters]})

    async def of_release(self, request: web.Request) -> web.Response:
        if self.only_v1:
            return _error(404, "Not Found")
        return web.json_response({"version": self.version})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f'vllm:lora_requests_info{{max_lora="{self.max_lora}"}} 1.0\n')

    async def load(self, request: web.Request) -> web.Response:
        return await self.loading(request)

    async def loaded(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["lora_name"] in self.names:
            return _error(400, "The lora adapter has already been loaded.")
        self.names.add(body["lora_name"])
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.names:
            return _error(404, f"{name} cannot be found.")
        self.names.discard(name)
        return web.Response(text="Success")

    async def tokenize(self, request: web.Request) -> web.Response:
        return await self.rendering(request)

    async def rendered(self, request: web.Request) -> web.Response:
        messages = [Message(m["role"], m["content"]) for m in (await request.json())["messages"]]
        return web.json_response({"tokens": render_prompt(self.tokenizer, messages)})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.chats.append(body)
        if body["model"] not in {"tiny", *self.names}:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if body.get("priority") and not self.priorities:
            return _error(400, "Got priority 1 but Priority scheduling is not enabled.")
        if self.hold is not None and body["max_tokens"] == 99:
            await self.hold.wait()
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
        if (answer := self.scoring()) is not None:
            return answer
        prompts = (await request.json())["prompt"]
        return web.json_response(
            {
                "choices": [
                    {
                        "index": i,
                        "prompt_logprobs": [None, *({str(t): {"logprob": 0.0}} for t in p[1:])],
                    }
                    for i, p in enumerate(prompts)
                ]
            }
        )


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@asynccontextmanager
async def serving(server: Server, port: int = 0) -> AsyncIterator[Server]:
    app = web.Application()
    app.router.add_get("/health", server.health)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/version", server.of_release)
    app.router.add_get("/metrics", server.metrics)
    app.router.add_post("/tokenize", server.tokenize)
    app.router.add_post("/v1/load_lora_adapter", server.load)
    app.router.add_post("/v1/unload_lora_adapter", server.unload)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.score)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def tokenizer(tiny_policy_path: Path) -> Any:
    return load_tokenizer(tiny_policy_path)


@pytest.fixture
async def servers(tokenizer: Any) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(Server(tokenizer))) for _ in range(2)]


@pytest.fixture
async def engine(
    servers: list[Server], tiny_policy_path: Path, tmp_path: Path
) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(
        VllmEngineConfig(
            urls=tuple(s.url for s in servers), health_every_s=0.05, health_timeout_s=20
        ),
        ModelConfig(path=tiny_policy_path, name="tiny"),
        adapters_dir=tmp_path / "adapters",
    )
    await made.start()
    yield made
    await made.close()


async def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def scored(where: TokenScorer) -> None:
    await where.token_logprobs("v0001", [5, 6], [[7, 8]])


async def test_a_name_that_somebody_unloaded_comes_back_and_nothing_running_fails(
    servers: list[Server], engine: VllmEngine, tmp_path: Path
) -> None:
    """Gateways over the same servers keep different versions: what one drops, another may hold."""
    await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1))
    for server in servers:
        server.hold = asyncio.Event()
    running = asyncio.create_task(engine.generate("v0000", PROMPT, SamplingParams(max_tokens=99)))
    assert engine._fleet is not None
    replicas = engine._fleet.replicas
    await until(lambda: any(replica.rows for replica in replicas))
    for server in servers:
        server.names = {name for name in server.names if not name.startswith("v0001")}
    await until(lambda: all(any(n.startswith("v0001") for n in s.names) for s in servers))
    assert all(replica.ready for replica in replicas)
    for server in servers:
        assert server.hold is not None
        server.hold.set()
    assert len((await running).completions) == 1


async def test_a_stream_gets_back_a_version_that_its_server_lacks(
    servers: list[Server], engine: VllmEngine, tmp_path: Path
) -> None:
    await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1))
    assert engine._fleet is not None
    for task in engine._fleet._watching:  # nobody looks
        task.cancel()
    for server in servers:
        server.names = {name for name in server.names if not name.startswith("v0001")}
    pieces = [piece async for piece in engine.stream("v0001", PROMPT, PARAMS)]
    assert pieces[-1].completion is not None
    assert pieces[-1].completion.token_ids == (5,)
    assert all(replica.ready for replica in engine._fleet.replicas)


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"version": "0.24.0"}, "47724"),
        ({"max_lora": 2}, "--max-loras 2"),
        ({"priorities": False}, "--scheduling-policy priority"),
        ({"max_model_len": 128}, "--max-model-len"),
    ],
)
async def test_a_server_that_comes_back_as_another_is_left_out_with_the_reason(
    servers: list[Server], engine: VllmEngine, changes: dict[str, Any], because: str
) -> None:
    assert engine._fleet is not None
    ours = engine._fleet.replicas[0]
    for name, value in changes.items():
        setattr(servers[0], name, value)
    servers[0].names.clear()  # as it starts
    await until(lambda: because in ours.why_not_ready)
    assert not ours.ready
    assert len((await engine.generate("v0000", PROMPT, PARAMS, n=2)).completions) == 2


async def test_a_version_that_no_server_can_score_is_refused_and_no_server_is_blamed(
    servers: list[Server], engine: VllmEngine, tmp_path: Path
) -> None:
    """vLLM answers 500 where a log-probability is not a number, which no waiting mends."""
    for server in servers:
        server.scoring = lambda: _error(500, "Out of range float values are not JSON compliant")
    with pytest.raises(AdapterError, match="fails to score v0001"):
        await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1), scored)
    assert engine._fleet is not None
    assert all(replica.ready for replica in engine._fleet.replicas)
    assert not any(name.startswith("v0001") for server in servers for name in server.names)


@pytest.mark.parametrize("status", [200, 403, 404])
async def test_a_hidden_tokenize_route_is_named(
    servers: list[Server], engine: VllmEngine, status: int
) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>", status=status)

    for server in servers:
        server.rendering = page
    with pytest.raises(EngineUnavailableError, match=r"/tokenize.*let that route through"):
        await engine.count_prompt_tokens(PROMPT)


async def test_behind_a_proxy_that_hides_health_and_release_answers_come_and_adapters_do_not(
    servers: list[Server], tiny_policy_path: Path, tmp_path: Path
) -> None:
    servers[0].only_v1 = True
    config = VllmEngineConfig(urls=(servers[0].url,), health_every_s=0.05, health_timeout_s=20)
    model = ModelConfig(path=tiny_policy_path, name="tiny")
    engine = VllmEngine(config, model, adapters_dir=tmp_path / "adapters")
    await engine.start()
    try:
        await asyncio.sleep(0.5)  # several looks
        assert len((await engine.generate("v0000", PROMPT, PARAMS, n=2)).completions) == 2
        assert not engine.info.adapters
        with pytest.raises(EngineUnavailableError, match="/version"):
            await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1), scored)
    finally:
        await engine.close()


async def test_a_server_that_goes_away_during_a_load_is_left_out_and_the_others_have_it(
    servers: list[Server], engine: VllmEngine, tmp_path: Path
) -> None:
    assert engine._fleet is not None
    for task in engine._fleet._watching:  # nobody looks
        task.cancel()
    first, second = servers

    async def breaks_off(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    first.loading = breaks_off
    await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1))
    ours, other = engine._fleet.replicas
    assert "did not load v0001" in ours.why_not_ready
    assert not ours.ready
    assert other.ready
    assert any(name.startswith("v0001-") for name in second.names)
    await engine.drop_adapter("v0001")
    assert not any(name.startswith("v0001") for name in second.names)


async def test_what_goes_to_the_servers_of_a_trainer_yields_and_has_names_of_its_own(
    servers: list[Server], tiny_policy_path: Path, tmp_path: Path
) -> None:
    engine = VllmEngine(
        VllmEngineConfig(urls=(servers[0].url,)),
        ModelConfig(path=tiny_policy_path, name="tiny"),
        adapters_dir=tmp_path / "adapters",
        background=True,
    )
    await engine.start()
    await engine.generate("v0000", PROMPT, SamplingParams(max_tokens=4, top_k=1 << 40))
    assert servers[0].chats[-1]["priority"] == 10
    assert servers[0].chats[-1]["top_k"] == -1  # more than the vocabulary has
    assert all(name.endswith("-training") for name in servers[0].names)
    await engine.close()


async def test_empty_completions_are_scored_as_nothing(engine: VllmEngine) -> None:
    assert await engine.token_logprobs("v0000", [5, 6], [[], [7], []]) == [(), (0.0,), ()]


async def test_the_reference_is_tried_where_another_start_left_it(
    servers: list[Server], engine: VllmEngine, tiny_policy_path: Path, tmp_path: Path
) -> None:
    """A name that is there already would not show that the folder is seen no more."""

    async def blind(request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name in servers[0].names:
            return _error(400, "The lora adapter has already been loaded.")
        return _error(404, "No adapter found")

    servers[0].loading = blind
    again = VllmEngine(
        VllmEngineConfig(urls=(servers[0].url,), adapters_path=Path("/mounted")),
        ModelConfig(path=tiny_policy_path, name="tiny"),
        adapters_dir=tmp_path / "adapters",
    )
    with pytest.raises(ModelLoadError, match=r"does not see /mounted/v0000: mount"):
        await again.start()


@pytest.mark.parametrize(("max_lora", "adapters"), [(4, False), (5, True)])
async def test_slots_for_every_version_and_the_reference_are_needed(
    servers: list[Server], tiny_policy_path: Path, tmp_path: Path, max_lora: int, adapters: bool
) -> None:
    servers[0].max_lora = max_lora
    engine = VllmEngine(
        VllmEngineConfig(urls=(servers[0].url,), max_adapters=4),
        ModelConfig(path=tiny_policy_path, name="tiny"),
        adapters_dir=tmp_path / "adapters",
    )
    await engine.start()
    assert engine.info.adapters is adapters
    await engine.close()


async def test_a_folder_that_renders_otherwise_than_the_servers_is_refused(
    servers: list[Server], tiny_policy_path: Path, tmp_path: Path
) -> None:
    async def other(request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2, 3]})

    servers[0].rendering = other
    engine = VllmEngine(
        VllmEngineConfig(urls=(servers[0].url,)),
        ModelConfig(path=tiny_policy_path, name="tiny"),
        adapters_dir=tmp_path / "adapters",
    )
    with pytest.raises(ModelLoadError, match="renders conversations otherwise"):
        await engine.start()
