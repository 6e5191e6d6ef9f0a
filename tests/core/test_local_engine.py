"""The local engine computes what the model computes, for every row, whatever else runs."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
from local_engines import (
    END,
    ENDLESS,
    LONG_PROMPT,
    PARAMS,
    PROMPT,
    engine,
    tiny_policy_path,
    until_idle,
    until_running,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from bond_core.config import LocalEngineConfig, ModelConfig
from bond_core.engines.local import LocalEngine
from bond_core.errors import EngineUnavailableError, PromptTooLongError
from bond_core.types import Completion, Generation, Message

__all__ = ["engine", "tiny_policy_path"]


@pytest.fixture(scope="module")
def plain_model(tiny_policy_path: Path) -> PreTrainedModel:
    """The same model as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(tiny_policy_path).eval()


def recomputed(
    model: PreTrainedModel, prompt: tuple[int, ...], tokens: tuple[int, ...], temperature: float = 1
) -> list[float]:
    """Log-probabilities of tokens after a prompt by one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


async def test_logprobs_are_the_models_own(
    engine: LocalEngine, plain_model: PreTrainedModel
) -> None:
    """Of rows of unequal length that enter and leave one batch at different steps."""
    jobs: list[asyncio.Task[Generation]] = []
    for i in range(6):
        prompt = [PROMPT, LONG_PROMPT][i % 2]
        params = replace(
            PARAMS, max_tokens=5 + 30 * (i % 3), temperature=1.0 + 0.2 * (i % 2), seed=i
        )
        jobs.append(asyncio.create_task(engine.generate("v0000", prompt, params, n=3)))
        await asyncio.sleep(0.004)
    ended = 0
    for i, job in enumerate(jobs):
        generation = await job
        for completion in generation.completions:
            expected = recomputed(
                plain_model,
                generation.prompt_token_ids,
                completion.token_ids,
                1.0 + 0.2 * (i % 2),
            )
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)
            ended += completion.token_ids[-1] == END
    assert ended > 0, "no answer ended by itself, so the end's log-probability was not tested"


async def test_the_end_token_is_counted_and_not_shown(
    engine: LocalEngine, plain_model: PreTrainedModel
) -> None:
    quick = replace(PARAMS, logit_bias={END: 100.0})
    generation = await engine.generate("v0000", PROMPT, quick)
    assert generation.completions[0] == Completion("", (END,), (0.0,), "stop")
    free = await engine.token_logprobs("v0000", generation.prompt_token_ids, [(END,)])
    expected = recomputed(plain_model, generation.prompt_token_ids, (END,))
    assert free[0] == pytest.approx(expected, abs=1e-4)


async def test_scoring_splits_into_passes_without_changing_values(
    engine: LocalEngine, plain_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = await engine.generate("v0000", LONG_PROMPT, replace(PARAMS, max_tokens=50), n=9)
    tokens = [completion.token_ids for completion in generation.completions]
    expected = [recomputed(plain_model, generation.prompt_token_ids, t, 0.7) for t in tokens]
    for limit in (2**24, 300 * 60, 300 * 7):  # one pass, row by row, a row in pieces
        monkeypatch.setattr("bond_core.engines.local.scoring._LOGITS_PER_PASS", limit)
        found = await engine.token_logprobs("v0000", generation.prompt_token_ids, tokens, 0.7)
        for logprobs, wanted in zip(found, expected, strict=True):
            assert logprobs == pytest.approx(wanted, abs=1e-4)


async def test_a_prompt_of_one_token_can_be_scored(
    engine: LocalEngine, plain_model: PreTrainedModel
) -> None:
    found = await engine.token_logprobs("v0000", [7], [(9, 10), (11,)])
    assert found[0] == pytest.approx(recomputed(plain_model, (7,), (9, 10)), abs=1e-4)
    assert found[1] == pytest.approx(recomputed(plain_model, (7,), (11,)), abs=1e-4)


async def test_first_tokens_follow_the_softmax(
    engine: LocalEngine, plain_model: PreTrainedModel
) -> None:
    generations = await asyncio.gather(
        *(
            engine.generate("v0000", PROMPT, replace(PARAMS, max_tokens=1, seed=seed), n=500)
            for seed in range(8)
        )
    )
    counts = torch.zeros(tiny_models.VOCAB_SIZE)
    for generation in generations:
        for completion in generation.completions:
            counts[completion.token_ids[0]] += 1
    prompt = generations[0].prompt_token_ids
    with torch.no_grad():
        law = plain_model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    # Counts are multinomial: over 300 tokens the statistic has mean 299 and deviation 24.
    statistic = ((counts - 4000 * law) ** 2 / (4000 * law)).sum()
    assert 200 < statistic < 420


async def test_n_candidates_are_one_prefill(engine: LocalEngine) -> None:
    before = engine.prefills
    generation = await engine.generate("v0000", PROMPT, PARAMS, n=64)
    assert engine.prefills == before + 1
    assert len(generation.completions) == 64


async def test_more_candidates_than_rows_are_all_exact(
    engine: LocalEngine, plain_model: PreTrainedModel
) -> None:
    """64 candidates through 16 rows, beside another request that comes later."""
    many = asyncio.create_task(engine.generate("v0000", PROMPT, PARAMS, n=64))
    await until_running(engine, 16)
    assert engine.running_rows <= 16
    one = await engine.generate("v0000", LONG_PROMPT, PARAMS)
    generation = await many
    for completion in (generation.completions[0], generation.completions[63]):
        expected = recomputed(plain_model, generation.prompt_token_ids, completion.token_ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    expected = recomputed(plain_model, one.prompt_token_ids, one.completions[0].token_ids)
    assert one.completions[0].logprobs == pytest.approx(expected, abs=1e-4)


async def test_a_newcomer_ends_before_the_long_rows_of_a_running_batch(engine: LocalEngine) -> None:
    ended: list[str] = []
    long = asyncio.create_task(engine.generate("v0000", PROMPT, ENDLESS, n=8), name="long")
    await until_running(engine, 8)
    few = replace(PARAMS, max_tokens=2)
    short = asyncio.create_task(engine.generate("v0000", LONG_PROMPT, few), name="short")
    for task in (long, short):
        task.add_done_callback(lambda task: ended.append(task.get_name()))
    assert len((await short).completions[0].token_ids) <= 2
    await asyncio.wait({long})
    assert ended == ["short", "long"]
    assert [len(completion.token_ids) for completion in (await long).completions] == [160] * 8


async def test_a_stream_starts_before_the_answer_has_ended(engine: LocalEngine) -> None:
    stream = engine.stream("v0000", PROMPT, ENDLESS)
    first = await anext(aiter(stream))
    assert first.completion is None
    rest = [delta async for delta in stream]
    assert rest[-1].completion is not None
    assert first.text + "".join(delta.text for delta in rest) == rest[-1].completion.text
    assert len(rest) > 20


async def test_versions_without_rows_are_let_go_and_the_thread_sleeps(engine: LocalEngine) -> None:
    for version in ("v0001", "v0002"):
        engine.publish(version, {})
        await engine.generate(version, PROMPT, replace(PARAMS, max_tokens=2), n=2)
    await until_idle(engine)
    worker = engine._worker
    assert worker is not None
    async with asyncio.timeout(60):
        while worker._batches:  # noqa: ASYNC110 changed in another thread
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("call", ["generate", "stream", "count"])
async def test_a_huge_prompt_is_rendered_away_from_the_event_loop(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    threads: list[int] = []

    def render(*_: object) -> list[int]:
        threads.append(threading.get_ident())
        return [1] * 100_000

    monkeypatch.setattr("bond_core.engines.local.engine.render_prompt", render)
    huge = [Message("user", "z" * 100_000)]
    if call == "count":
        assert await engine.count_prompt_tokens(huge) == 100_000
    else:
        stream = aiter(engine.stream("v0000", huge, PARAMS))
        work = engine.generate("v0000", huge, PARAMS) if call == "generate" else anext(stream)
        with pytest.raises(PromptTooLongError, match="100000 tokens"):
            await work
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_the_event_loop_answers_while_a_huge_prompt_is_rendered(engine: LocalEngine) -> None:
    """Megabytes of text, and very many messages; told by this process's own time, of which nothing
    passes while the machine does other things."""
    for huge in ([Message("user", "word " * 400_000)], [Message("user", "a")] * 20_000):
        began = time.process_time()
        slowest, last = 0.0, began
        task = asyncio.create_task(engine.count_prompt_tokens(huge))
        while not task.done():
            await asyncio.sleep(0.002)
            now = time.process_time()
            slowest, last = max(slowest, now - last), now
        assert await task > 20_000
        assert slowest < (last - began) / 2, (slowest, last - began)


async def test_before_start_everything_is_unavailable(tiny_policy_path: Path) -> None:
    engine = LocalEngine(LocalEngineConfig(), ModelConfig(path=tiny_policy_path))
    assert not await engine.health()
    for call in (
        lambda: engine.info,
        lambda: engine.running_rows,
    ):
        with pytest.raises(EngineUnavailableError, match="start"):
            call()
    with pytest.raises(EngineUnavailableError, match="start"):
        await engine.generate("v0000", PROMPT, PARAMS)


def test_callers_of_two_event_loops_share_an_engine(tiny_policy_path: Path) -> None:
    engine = LocalEngine(LocalEngineConfig(), ModelConfig(path=tiny_policy_path))
    asyncio.run(engine.start())
    one = asyncio.run(engine.generate("v0000", PROMPT, replace(PARAMS, seed=1)))
    other = asyncio.run(engine.generate("v0000", PROMPT, replace(PARAMS, seed=1)))
    assert one == other
    asyncio.run(engine.close())
