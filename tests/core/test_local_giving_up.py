"""Requests of the local engine that end early: given up, failed or closed, they cost no other."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_engines import (
    ENDLESS,
    LONG_PROMPT,
    PARAMS,
    PROMPT,
    engine,
    tiny_policy_path,
    until_idle,
    until_rows,
    until_running,
)

from bond_core.config import LocalEngineConfig, ModelConfig
from bond_core.engines.base import Partial
from bond_core.engines.local import LocalEngine, decode_loop
from bond_core.engines.local.decode_loop import RunningBatch
from bond_core.engines.local.worker import DecodeThread
from bond_core.errors import EngineUnavailableError
from bond_core.types import Generation, SamplingParams

__all__ = ["engine", "tiny_policy_path"]


class Wasted:
    """Steps that are begun for rows whose callers have gone, once `counting` is set.

    Rows are freed before the next step, and one may be under way: `AT_MOST`, where an answer that
    nobody stops takes 160.
    """

    AT_MOST = 2

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows_kept: int = 0) -> None:
        self.counting = False
        self.steps = 0
        step = RunningBatch.step

        def counted(batch: RunningBatch) -> None:
            self.steps += self.counting and len(batch.rows) > rows_kept
            step(batch)

        monkeypatch.setattr(RunningBatch, "step", counted)


async def test_cancelling_frees_the_rows_and_nobody_elses(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasted = Wasted(monkeypatch, rows_kept=1)
    seeded = replace(ENDLESS, seed=4)
    expected = await engine.generate("v0000", LONG_PROMPT, seeded)
    doomed = asyncio.create_task(engine.generate("v0000", PROMPT, ENDLESS, n=8))
    await until_running(engine, 8)
    kept = asyncio.create_task(engine.generate("v0000", LONG_PROMPT, seeded))
    await until_running(engine, 9)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    wasted.counting = True
    await until_rows(engine, lambda rows: rows <= 1)
    assert (await kept).completions[0].token_ids == expected.completions[0].token_ids
    assert wasted.steps <= Wasted.AT_MOST


async def test_what_ends_after_a_draw_was_given_up_is_told_once(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread that is slow to note it; told twice, its tokens would be paid twice."""
    monkeypatch.setattr(DecodeThread, "cancel", lambda *_: None)
    partial, params = Partial(), replace(PARAMS, max_tokens=120, seed=3)
    drawing = asyncio.create_task(engine.generate("v0000", PROMPT, params, 16, partial))
    async with asyncio.timeout(60):
        while not partial.completions:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    drawing.cancel()
    await asyncio.wait({drawing})
    assert drawing.cancelled()
    ended, cut = set(partial.completions), set(partial.unfinished)
    await until_idle(engine)  # all the others have ended too
    assert (set(partial.completions), set(partial.unfinished)) == (ended, cut)
    assert (ended | cut, ended & cut) == (set(range(16)), set())
    assert cut


async def test_cancelling_while_waiting_leaves_the_queue(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasted = Wasted(monkeypatch)
    running = asyncio.create_task(engine.generate("v0000", PROMPT, ENDLESS, n=16))
    await until_running(engine, 16)
    waiting = asyncio.create_task(engine.generate("v0000", PROMPT, ENDLESS, n=16))
    await asyncio.sleep(0.01)
    waiting.cancel()
    running.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    wasted.counting = True
    await until_idle(engine)
    assert wasted.steps <= Wasted.AT_MOST
    wasted.counting = False
    assert len((await engine.generate("v0000", PROMPT, PARAMS)).completions) == 1


async def test_closing_a_stream_frees_its_row(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasted = Wasted(monkeypatch)
    stream = engine.stream("v0000", PROMPT, ENDLESS)
    await anext(aiter(stream))
    await stream.aclose()  # type: ignore[attr-defined]
    wasted.counting = True
    await until_idle(engine)
    assert wasted.steps <= Wasted.AT_MOST
    assert len((await engine.generate("v0000", PROMPT, PARAMS)).completions) == 1


async def test_closing_fails_what_is_running(tiny_policy_path: Path) -> None:
    engine = LocalEngine(LocalEngineConfig(max_rows=2), ModelConfig(path=tiny_policy_path))
    await engine.start()
    tasks = [asyncio.create_task(engine.generate("v0000", PROMPT, ENDLESS)) for _ in range(4)]
    await until_running(engine, 2)
    await engine.close()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, EngineUnavailableError)
    await engine.close()


async def test_one_failing_batch_does_not_touch_the_others(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.publish("broken", {})
    step = RunningBatch.step

    def failing_step(batch: RunningBatch) -> None:
        if batch.weights.version == "broken" and len(batch.rows[0].token_ids) > 3:
            raise ArithmeticError("a broken kernel")
        step(batch)

    monkeypatch.setattr(RunningBatch, "step", failing_step)
    good, bad = await asyncio.gather(
        engine.generate("v0000", PROMPT, ENDLESS, n=2),
        engine.generate("broken", PROMPT, ENDLESS, n=2),
        return_exceptions=True,
    )
    assert isinstance(good, Generation)
    assert [len(completion.token_ids) for completion in good.completions] == [160, 160]
    assert isinstance(bad, EngineUnavailableError)
    assert "a broken kernel" in str(bad)
    assert isinstance(bad.__cause__, ArithmeticError)
    monkeypatch.setattr(RunningBatch, "step", step)
    assert len((await engine.generate("broken", PROMPT, PARAMS, n=3)).completions) == 3


@pytest.mark.parametrize("stage", ["prefill", "first token", "cache"])
async def test_a_newcomer_that_fails_does_not_touch_who_runs(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Of the same version; unless it was being written into the cache that they share."""

    def broken(*_: object) -> None:
        raise ArithmeticError("a broken kernel")

    running = asyncio.create_task(engine.generate("v0000", PROMPT, ENDLESS, n=2))
    await until_running(engine, 2)
    target = {
        "prefill": "bond_core.engines.local.worker.prefill",
        "first token": "bond_core.engines.local.decode_loop.initial_adjustment",
        "cache": "bond_core.engines.local.kv_cache.SlotCache.write",
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(target, broken)
        with pytest.raises(EngineUnavailableError, match="a broken kernel"):
            await engine.generate("v0000", LONG_PROMPT, ENDLESS)
    (outcome,) = await asyncio.gather(running, return_exceptions=True)
    if stage == "cache":
        assert isinstance(outcome, EngineUnavailableError)
    else:
        assert isinstance(outcome, Generation)
        assert [len(completion.token_ids) for completion in outcome.completions] == [160, 160]
    await until_idle(engine)
    assert len((await engine.generate("v0000", PROMPT, PARAMS, n=3)).completions) == 3


async def test_logits_that_are_not_finite_fail_their_own_request(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias cannot be NaN from outside; here it stands for a model that gives NaN."""
    made = decode_loop.initial_adjustment

    def poisoned(params: SamplingParams, *rest: Any) -> torch.Tensor | None:
        adjustment = made(params, *rest)
        if adjustment is not None and params.seed == 13:
            adjustment[7] = torch.nan
        return adjustment

    monkeypatch.setattr(decode_loop, "initial_adjustment", poisoned)
    good, bad = await asyncio.gather(
        engine.generate("v0000", PROMPT, replace(ENDLESS, seed=12), n=2),
        engine.generate("v0000", PROMPT, replace(ENDLESS, seed=13), n=2),
        return_exceptions=True,
    )
    assert isinstance(good, Generation)
    assert [len(completion.token_ids) for completion in good.completions] == [160, 160]
    assert isinstance(bad, EngineUnavailableError)
    assert "not finite" in str(bad)
    await until_idle(engine)
