"""The fake engine: deterministic, of settable delay and capacity, breakable on purpose."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from skipped_time import run_skipping

from bond_core.config import FakeEngineConfig, ModelConfig
from bond_core.engines.fake import FakeEngine
from bond_core.engines.fake_language import END_TOKEN, VOCAB_SIZE, Law, truncated
from bond_core.errors import EngineUnavailableError
from bond_core.types import Generation, Message, SamplingParams

PROMPT = [Message("user", "Where is my order?")]
PARAMS = SamplingParams(max_tokens=20)


@asynccontextmanager
async def running(delay_s: float = 0.0, capacity: int = 256) -> AsyncIterator[FakeEngine]:
    config = FakeEngineConfig(delay_s=delay_s, capacity=capacity)
    engine = FakeEngine(config, ModelConfig(path=Path("no-such-folder"), name="fake"))
    await engine.start()
    yield engine
    await engine.close()


async def test_the_same_request_has_the_same_answer_in_every_engine() -> None:
    async with running() as one, running(delay_s=0.001) as other:
        first = await one.generate("v0000", PROMPT, PARAMS, n=4)
        second = await other.generate("v0000", PROMPT, PARAMS, n=4)
    assert first == second
    assert len({completion.text for completion in first.completions}) == 4


async def test_another_prompt_has_another_answer() -> None:
    async with running() as engine:
        one = await engine.generate("v0000", PROMPT, PARAMS)
        other = await engine.generate("v0000", [*PROMPT, Message("assistant", "?")], PARAMS)
    assert one.completions[0].text != other.completions[0].text


async def test_the_law_of_a_position_sums_to_one_and_is_followed() -> None:
    async with running() as engine:
        prompt = (await engine.generate("v0000", PROMPT, PARAMS)).prompt_token_ids
        every = [(token,) for token in range(VOCAB_SIZE)]
        law = [
            math.exp(logprobs[0])
            for logprobs in await engine.token_logprobs("v0000", prompt, every)
        ]
        assert math.fsum(law) == pytest.approx(1.0)
        first = SamplingParams(max_tokens=1)
        drawn = (await engine.generate("v0000", PROMPT, first, n=20_000)).completions
    counts = [0] * VOCAB_SIZE
    for completion in drawn:
        counts[completion.token_ids[0]] += 1
    likely = [t for t in range(VOCAB_SIZE) if 20_000 * law[t] > 5]
    statistic = sum((counts[t] - 20_000 * law[t]) ** 2 / (20_000 * law[t]) for t in likely)
    assert statistic < 2 * len(likely)


def test_truncation_keeps_the_smallest_sufficient_set() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert [math.exp(x) for x in truncated(logits, 0, 0.7)] == pytest.approx([0.625, 0.375, 0, 0])
    assert [math.exp(x) for x in truncated(logits, 3, 1.0)] == pytest.approx(
        [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    )
    assert [math.exp(x) for x in truncated(logits, 0, 0.01)] == [1.0, 0, 0, 0]
    law = Law.of(logits, 1.0, 0, 1.0)
    assert [law.draw(u)[0] for u in (0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, 0.9999)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_delay_is_per_completion_and_capacity_makes_waves() -> None:
    async def eight_by_four() -> float:
        loop = asyncio.get_running_loop()
        async with running(delay_s=0.05, capacity=4) as engine:
            begun = loop.time()
            task = asyncio.create_task(engine.generate("v0000", PROMPT, PARAMS, n=8))
            await asyncio.sleep(0.02)
            assert (engine.in_progress, engine.drawn) == (4, 0)
            await asyncio.sleep(0.04)
            assert (engine.in_progress, engine.drawn) == (4, 4)
            await task
            assert (engine.in_progress, engine.drawn) == (0, 8)
            return loop.time() - begun

    assert run_skipping(eight_by_four()) == pytest.approx(2 * 0.05)


async def test_cancelling_frees_capacity() -> None:
    async with running(delay_s=30.0, capacity=4) as engine:
        task = asyncio.create_task(engine.generate("v0000", PROMPT, PARAMS, n=8))
        await asyncio.sleep(0.01)
        assert engine.in_progress == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.in_progress == 0
        assert engine.drawn == 0


async def test_closing_a_stream_frees_capacity() -> None:
    async with running(delay_s=0.2, capacity=1) as engine:
        stream = engine.stream("v0000", PROMPT, PARAMS)
        await anext(aiter(stream))
        assert engine.in_progress == 1
        await stream.aclose()  # type: ignore[attr-defined]
        assert engine.in_progress == 0


async def test_closing_the_engine_fails_what_is_running() -> None:
    async with running(delay_s=30.0) as engine:
        task = asyncio.create_task(engine.generate("v0000", PROMPT, PARAMS, n=2))
        await asyncio.sleep(0.01)
        await engine.close()
        with pytest.raises(EngineUnavailableError, match="closed"):
            await task


async def test_a_failure_set_by_a_test_is_what_every_call_raises() -> None:
    async with running() as engine:
        engine.failure = EngineUnavailableError("out for lunch")
        calls: list[Callable[[], Coroutine[None, None, object]]] = [
            lambda: engine.generate("v0000", PROMPT, PARAMS),
            lambda: engine.token_logprobs("v0000", [1], [[2]]),
            lambda: engine.count_prompt_tokens(PROMPT),
        ]
        for call in calls:
            with pytest.raises(EngineUnavailableError, match="lunch"):
                await call()
        assert not await engine.health()
        engine.failure = None
        assert isinstance(await engine.generate("v0000", PROMPT, PARAMS), Generation)


async def test_answers_are_words_and_end_by_themselves() -> None:
    async with running() as engine:
        generation = await engine.generate("v0000", PROMPT, SamplingParams(max_tokens=64), n=50)
    for completion in generation.completions:
        assert completion.finish_reason == "stop"
        assert completion.token_ids[-1] == END_TOKEN
        assert all(token > END_TOKEN for token in completion.token_ids[:-1])
    assert 3 < sum(len(c.token_ids) for c in generation.completions) / 50 < 25
