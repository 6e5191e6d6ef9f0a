"""Servers that obey their model's folder, hang, die, come back empty, or see no adapters."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_adapter
from vllm_servers import (
    POLICY_ENVIRONMENT,
    POLICY_FLAGS,
    VllmServer,
    free_port,
    serve_command,
    start_server,
    stop_server,
)

from bond_core.config import VllmEngineConfig
from bond_core.engines.base import Partial, TokenScorer
from bond_core.engines.vllm import VllmEngine
from bond_core.errors import (
    AdapterError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
)
from bond_core.types import Generation, Message, SamplingParams

from .conftest import Connect

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

PROMPT = [Message("user", "Where is my order?")]
PARAMS = SamplingParams(max_tokens=24)
LONG = SamplingParams(max_tokens=200, logit_bias={1: -100.0})
"""Answers that go on until the context ends: the end token has no chance."""


async def eventually(happened, within_s: float = 60.0, while_runs=None) -> None:
    """Wait until something is true; it has to become so before a task ends."""
    deadline = time.monotonic() + within_s
    while not await happened():
        assert time.monotonic() < deadline, "it did not happen"
        assert while_runs is None or not while_runs.done(), f"too late: {while_runs.result()}"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "further",
    [
        {"allowed_token_ids": [10**6]},
        {"stop_token_ids": [10**6]},
        {"structured_outputs": {"regex": "("}},
    ],
    ids=lambda further: next(iter(further)),
)
async def test_a_wrong_parameter_is_the_requests_fault_whole_and_streamed(
    policy_url: str, connect: Connect, further: dict[str, Any]
) -> None:
    engine = await connect(policy_url)
    wrong = replace(PARAMS, further=further)
    told: list[str] = []
    for partial in (None, Partial()):
        with pytest.raises(InvalidRequestError) as refused:
            await engine.generate("v0000", PROMPT, wrong, 2, partial)
        told.append(refused.value.message)
    with pytest.raises(InvalidRequestError) as refused:
        async for _ in engine.stream("v0000", PROMPT, wrong):
            pass
    assert [*told, refused.value.message] == [told[0]] * 3
    assert (await engine.generate("v0000", PROMPT, PARAMS)).completions


async def test_a_hostile_generation_config_changes_nothing(
    policy_url: str, other_server: VllmServer, connect: Connect
) -> None:
    plain, hostile = await connect(policy_url), await connect(other_server.url)
    seeded = replace(PARAMS, seed=5)
    greedy = replace(PARAMS, temperature=0.0)
    for params in (seeded, greedy, replace(seeded, temperature=1.7), replace(seeded, top_p=0.9)):
        one = await plain.generate("v0000", PROMPT, params, n=3)
        other = await hostile.generate("v0000", PROMPT, params, n=3)
        for left, right in zip(one.completions, other.completions, strict=True):
            assert left.token_ids == right.token_ids
            assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
        pieces = [piece async for piece in hostile.stream("v0000", PROMPT, params)]
        assert pieces[-1].completion is not None
        assert pieces[-1].completion.token_ids == one.completions[0].token_ids


async def test_a_cancelled_call_stops_the_server(policy_url: str, connect: Connect) -> None:
    engine = await connect(policy_url)
    before = await _metric(engine, "vllm:generation_tokens_total")
    running = asyncio.create_task(engine.generate("v0000", PROMPT, LONG, n=48))
    await eventually(lambda: _running_requests(engine, at_least=1), while_runs=running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: _running_requests(engine, at_most=0))
    drawn = await _metric(engine, "vllm:generation_tokens_total") - before
    assert drawn < 0.8 * 48 * 200  # the whole answer


async def test_a_closed_stream_stops_the_server(policy_url: str, connect: Connect) -> None:
    engine = await connect(policy_url)
    stream = engine.stream("v0000", PROMPT, LONG)
    assert (await anext(aiter(stream))).completion is None
    await stream.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: _running_requests(engine, at_most=0))


async def _running_requests(engine: VllmEngine, at_least: int = 0, at_most: int = 1000) -> bool:
    return at_least <= await _metric(engine, "vllm:num_requests_running") <= at_most


async def _metric(engine: VllmEngine, name: str) -> float:
    assert engine._fleet is not None
    text = await engine._fleet.replicas[0].connection.get("/metrics")
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.rsplit(" ", 1)[1])


async def test_background_requests_have_a_low_priority(
    policy_url: str, tiny_policy_path: Path, tmp_path: Path
) -> None:
    from bond_core.config import ModelConfig

    engine = VllmEngine(
        VllmEngineConfig(urls=(policy_url,)),
        ModelConfig(path=tiny_policy_path, name="tiny"),
        adapters_dir=tmp_path,
        background=True,
    )
    await engine.start()
    assert engine._body("v0000", PROMPT, PARAMS, 1)[1]["priority"] == 10
    assert len((await engine.generate("v0000", PROMPT, PARAMS, n=2)).completions) == 2
    await engine.close()


async def test_a_replica_that_hangs_and_one_that_dies(
    policy_url: str,
    tiny_policy_path: Path,
    connect: Connect,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Requests on it are answered by the other one; it comes back with every adapter, checked,
    before it gets requests again."""
    port = free_port()
    argv = serve_command(
        tiny_policy_path, port, *POLICY_FLAGS, "--served-model-name", "tiny-served"
    )
    log_path = tmp_path_factory.mktemp("vllm") / "mortal.log"
    checked: list[str] = []

    async def check(where: TokenScorer) -> None:
        [values] = await where.token_logprobs("v0001", [5, 6], [[7, 8]])
        assert len(values) == 2
        checked.append(type(where).__name__)

    with start_server(argv, POLICY_ENVIRONMENT, port, log_path) as mortal:
        engine = await connect(mortal.url, policy_url, health_timeout_s=1.0)
        assert engine._fleet is not None
        ours, _ = engine._fleet.replicas
        await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1), check)
        assert len(checked) == 2
        prompts = [[Message("user", f"question {number}")] for number in range(24)]

        async def ask(params: SamplingParams = PARAMS) -> list[Generation | BaseException]:
            return await asyncio.gather(
                *(engine.generate("v0001", prompt, params, n=2) for prompt in prompts),
                return_exceptions=True,
            )

        before = await ask()
        assert all(isinstance(one, Generation) for one in before)

        # it hangs with requests in flight: they are asked again elsewhere once it misses its looks
        asking = asyncio.create_task(ask(LONG))
        await eventually(lambda: _is_busy(ours), while_runs=asking)
        os.killpg(mortal.process.pid, signal.SIGSTOP)
        answers = await asking
        assert [a for a in answers if not isinstance(a, Generation)] == []
        assert not ours.ready
        os.killpg(mortal.process.pid, signal.SIGCONT)
        await eventually(lambda: _is_ready(ours))

        # it dies with requests in flight
        asking = asyncio.create_task(ask(LONG))
        await eventually(lambda: _is_busy(ours), while_runs=asking)
        os.killpg(mortal.process.pid, signal.SIGKILL)
        answers = await asking
        assert [a for a in answers if not isinstance(a, Generation)] == []
        assert not ours.ready
        await engine.load_adapter("v0002", tiny_adapter(tmp_path / "two", seed=2))  # meanwhile
        stop_server(mortal.process)

    with start_server(argv, POLICY_ENVIRONMENT, port, log_path):
        before_restart = len(checked)
        await eventually(lambda: _is_ready(ours))
        assert len(checked) == before_restart + 1
        assert {name.split("-")[0] for name in ours.adapters} == {"v0000", "v0001", "v0002"}
        answers = await ask()
        assert all(isinstance(one, Generation) for one in answers)


async def _is_busy(replica) -> bool:
    return replica.rows > 4


async def _is_ready(replica) -> bool:
    return replica.ready


async def test_a_server_without_lora_behind_a_key_serves_the_reference(
    tiny_policy_path: Path, connect: Connect, tmp_path: Path
) -> None:
    port = free_port()
    argv = serve_command(
        tiny_policy_path, port, "--dtype", "float32", "--max-model-len", "256", "--block-size",
        "32", "--served-model-name", "someone-elses", "--api-key", "their-key",
    )  # fmt: skip
    with start_server(argv, {}, port, tmp_path / "plain.log") as server:
        with pytest.raises(ModelLoadError, match=r"refuses the key.*engine\.api_key"):
            await connect(server.url)
        engine = await connect(server.url, api_key="their-key")
        assert not engine.info.adapters
        assert "--enable-lora" in engine.info.no_adapters_because
        assert await engine.loaded_versions() == ["v0000"]
        drawn = await engine.generate("v0000", PROMPT, PARAMS, n=4)
        assert len(drawn.completions) == 4
        tokens = [completion.token_ids for completion in drawn.completions]
        scored = await engine.token_logprobs("v0000", drawn.prompt_token_ids, tokens)
        for completion, values in zip(drawn.completions, scored, strict=True):
            assert completion.logprobs == pytest.approx(values, abs=2e-4)
        with pytest.raises(EngineUnavailableError, match="--enable-lora"):
            await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1))


async def test_a_server_that_does_not_see_the_adapters_is_named_with_the_mount(
    policy_url: str, connect: Connect
) -> None:
    with pytest.raises(ModelLoadError, match=r"does not see /elsewhere/v0000: mount .*adapters"):
        await connect(policy_url, adapters_path=Path("/elsewhere"))


async def test_a_load_that_one_server_refuses_is_undone_on_the_other(
    policy_url: str, other_server: VllmServer, connect: Connect, tmp_path: Path
) -> None:
    engine = await connect(policy_url, other_server.url)
    assert engine._fleet is not None
    seen: list[TokenScorer] = []

    async def check(where: TokenScorer) -> None:
        seen.append(where)
        if len(seen) == 2:
            raise AdapterError("not this one")

    path = tiny_adapter(tmp_path / "one", seed=1)
    with pytest.raises(AdapterError, match="not this one"):
        await engine.load_adapter("v0001", path, check)
    assert await engine.loaded_versions() == ["v0000"]
    for replica in engine._fleet.replicas:
        assert not any(name.startswith("v0001") for name in await replica.names(5.0))
    await engine.load_adapter("v0001", path)
    for replica in engine._fleet.replicas:
        assert any(name.startswith("v0001") for name in await replica.names(5.0))


async def test_a_name_that_somebody_dropped_is_loaded_again(
    policy_url: str, connect: Connect, tmp_path: Path
) -> None:
    engine = await connect(policy_url, health_every_s=60.0)
    assert engine._fleet is not None
    await engine.load_adapter("v0001", tiny_adapter(tmp_path / "one", seed=1))
    seeded = replace(PARAMS, seed=3)
    before = await engine.generate("v0001", PROMPT, seeded)
    [replica] = engine._fleet.replicas
    [name] = [name for name in replica.adapters if name.startswith("v0001")]
    await replica.connection.post("/v1/unload_lora_adapter", {"lora_name": name})
    assert (await engine.generate("v0001", PROMPT, seeded)).completions == before.completions


async def test_no_server_at_all_is_an_error_that_says_how_to_start_one(connect: Connect) -> None:
    with pytest.raises(ModelLoadError, match="bond vllm"):
        await connect(f"http://127.0.0.1:{free_port()}")
