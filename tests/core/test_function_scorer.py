"""A user's function as scorer: called as TRL calls it, its mistakes named."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from bond_core.config import FunctionScorerConfig
from bond_core.errors import ModelLoadError, ScoringError
from bond_core.rewards import Scorer, build_scorer
from bond_core.types import Message

PROMPT = [Message("system", "Be kind."), Message("user", "Where is my order?")]


async def scorer_of(tmp_path: Path, source: str, name: str = "reward") -> Scorer:
    file = tmp_path / "rewards_of_mine.py"
    file.write_text(source)
    scorer = build_scorer(FunctionScorerConfig(function=f"{file}:{name}"))
    await scorer.start()
    return scorer


async def test_the_function_sees_conversations_and_each_pair_once(tmp_path: Path) -> None:
    source = """
calls = []

def reward(prompts, completions, **kwargs):
    calls.append((prompts, completions, kwargs))
    return [float(len(c[0]["content"])) for c in completions]

def seen(prompts, completions):
    return calls[0]
"""
    scorer = await scorer_of(tmp_path, source)
    scores = await scorer.score([PROMPT, PROMPT, PROMPT], ["abc", "de", "abc"])
    assert scores == [3.0, 2.0, 3.0]
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is my order?"},
    ]
    function = scorer._function  # type: ignore[attr-defined]
    assert function.__globals__["calls"] == [
        (
            [turns, turns],
            [[{"role": "assistant", "content": "abc"}], [{"role": "assistant", "content": "de"}]],
            {},
        )
    ]
    await scorer.close()


async def test_an_edit_of_one_letter_within_a_second_is_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    source = "def reward(prompts, completions, **kwargs):\n    return [1.0 for _ in completions]\n"
    file = tmp_path / "rewards_of_mine.py"
    scores: list[list[float]] = []
    identities: set[str] = set()
    for text in (source, source.replace("1.0", "2.0")):
        file.write_text(text)
        os.utime(file, (1_750_000_000, 1_750_000_000))
        scorer = build_scorer(FunctionScorerConfig(function=f"{file}:reward"))
        await scorer.start()
        scores.append(await scorer.score([PROMPT], ["a"]))
        identities.add(scorer.identity)
        await scorer.close()
    assert scores == [[1.0], [2.0]]
    assert len(identities) == 2


async def test_it_runs_in_a_thread_one_call_at_a_time(tmp_path: Path) -> None:
    source = """
import threading, time
running = 0

def reward(prompts, completions, **kwargs):
    global running
    running += 1
    time.sleep(0.01)
    assert running == 1
    running -= 1
    return [float(threading.get_ident())] * len(completions)
"""
    scorer = await scorer_of(tmp_path, source)
    found = await asyncio.gather(*(scorer.score([PROMPT], [str(i)]) for i in range(4)))
    assert {scores[0] for scores in found} != {float(threading.get_ident())}
    assert len({scores[0] for scores in found}) == 1
    await scorer.close()


async def test_an_async_function_is_awaited(tmp_path: Path) -> None:
    source = """
import asyncio

async def reward(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return (1, 2)
"""
    scorer = await scorer_of(tmp_path, source)
    assert await scorer.score([PROMPT] * 2, ["a", "b"]) == [1.0, 2.0]
    await scorer.close()


async def test_arrays_are_taken(tmp_path: Path) -> None:
    source = """
import numpy

def reward(prompts, completions, **kwargs):
    return numpy.array([0.5, 1.5], dtype=numpy.float32)
"""
    scorer = await scorer_of(tmp_path, source)
    assert await scorer.score([PROMPT] * 2, ["a", "b"]) == [0.5, 1.5]
    await scorer.close()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("raise KeyError('oops')", "raised KeyError: 'oops'"),
        ("return [1.0, float('nan'), 2.0]", "returned nan for completion 1"),
        ("return [1.0, 2.0, float('-inf')]", "returned -inf for completion 2"),
        ("return [1.0, None, 2.0]", "returned None for completion 1"),
        ("return [1.0, 'high', 2.0]", "returned 'high' for completion 1"),
        ("return [1.0]", "returned 1 scores for 3 completions"),
        ("return 1.0", "returned 1.0; it must return a list of 3 numbers"),
        ("return None", "returned None; it must return a list of 3 numbers"),
    ],
)
async def test_mistakes_are_named(tmp_path: Path, body: str, named: str) -> None:
    scorer = await scorer_of(tmp_path, f"def reward(prompts, completions, **kwargs):\n    {body}\n")
    with pytest.raises(ScoringError) as caught:
        await scorer.score([PROMPT] * 3, ["a", "b", "c"])
    assert named in str(caught.value)
    assert "rewards_of_mine.py:reward" in str(caught.value)
    await scorer.close()


async def test_a_function_of_an_installed_module() -> None:
    scorer = build_scorer(FunctionScorerConfig(function="statistics:fmean"))
    await scorer.start()
    with pytest.raises(ScoringError, match="statistics:fmean raised TypeError"):
        await scorer.score([PROMPT], ["a"])
    await scorer.close()


async def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("number = 3\ndef other(prompts, completions): ...\n")
    broken = tmp_path / "broken.py"
    broken.write_text("import not_installed_anywhere\n")
    cases = {
        f"{tmp_path}/nowhere.py:reward": "does not exist",
        f"{file}:reward": "has no 'reward'; it has other",
        f"{file}:number": "is a int, not a function",
        f"{broken}:reward": "No module named 'not_installed_anywhere'",
        "not_installed_anywhere.rewards:reward": "cannot be imported",
    }
    for target, named in cases.items():
        with pytest.raises(ModelLoadError, match=named.replace("(", r"\(")):
            await build_scorer(FunctionScorerConfig(function=target)).start()


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("raise StopIteration('done')", "StopIteration"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("import asyncio; raise asyncio.CancelledError", "raised CancelledError"),
    ],
)
async def test_what_is_no_ordinary_exception_is_a_scoring_error(
    tmp_path: Path, kind: str, body: str, named: str
) -> None:
    source = f"{kind} reward(prompts, completions, **kwargs):\n    {body}\n"
    scorer = await scorer_of(tmp_path, source)
    async with asyncio.timeout(10):
        for _ in range(2):  # the thread lives on
            with pytest.raises(ScoringError, match=named):
                await scorer.score([PROMPT], ["a"])
    await scorer.close()


@pytest.mark.parametrize("raised", ["raise StopIteration", "raise SystemExit(0)"])
async def test_what_an_import_raises_is_named(tmp_path: Path, raised: str) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(ModelLoadError, match=raised.split()[1].split("(")[0]):
            await scorer_of(tmp_path, f"{raised}\n")


@pytest.mark.parametrize(
    ("score", "named"), [("10**400", "returned 1000"), ("10**5000", "a int too long to show")]
)
async def test_an_integer_beyond_floats_is_not_finite(
    tmp_path: Path, score: str, named: str
) -> None:
    scorer = await scorer_of(tmp_path, f"def reward(prompts, completions):\n    return [{score}]\n")
    with pytest.raises(ScoringError, match="every score must be finite") as caught:
        await scorer.score([PROMPT], ["a"])
    assert named in str(caught.value)
    await scorer.close()


HANGS = """
import threading
gate = threading.Event()

def reward(prompts, completions, **kwargs):
    if completions[0][0]["content"] == "slow":
        gate.wait(60)
    return [1.0]
"""


async def test_a_call_that_hangs_is_given_up_and_hinders_no_end(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HANGS)
    scorer = build_scorer(FunctionScorerConfig(function=f"{file}:reward", timeout_s=0.1))
    await scorer.start()
    gate = scorer._function.__globals__["gate"]  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        for text in ("slow", "quick"):
            with pytest.raises(ScoringError, match=r"took longer than 0.1 s.*timeout_s"):
                await scorer.score([PROMPT], [text])
        gate.set()  # it returns after all
        while True:
            try:
                assert await scorer.score([PROMPT], ["quick"]) == [1.0]
                break
            except ScoringError:
                await asyncio.sleep(0.01)
        gate.clear()
        with pytest.raises(ScoringError, match="took longer"):
            await scorer.score([PROMPT], ["slow"])
        await scorer.close()
    gate.set()


async def test_an_async_function_that_hangs_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import asyncio\nasync def reward(prompts, completions):\n    await asyncio.sleep(60)\n"
    )
    scorer = build_scorer(FunctionScorerConfig(function=f"{file}:reward", timeout_s=0.05))
    await scorer.start()
    with pytest.raises(ScoringError, match="took longer than"):
        await scorer.score([PROMPT], ["a"])
    await scorer.close()


async def test_a_cancelled_caller_is_cancelled(tmp_path: Path) -> None:
    source = (
        "import asyncio\nasync def reward(prompts, completions):\n    await asyncio.sleep(60)\n"
    )
    scorer = await scorer_of(tmp_path, source)
    task = asyncio.create_task(scorer.score([PROMPT], ["a"]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await scorer.close()
