"""What stops a run and what does not: bad prompts, failing evaluations, a lost lease."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import config_of, messages_of, prompts_file

from bond_core.config import BondConfig
from bond_core.errors import BondError, StoreUnavailableError
from bond_core.holdout import Split
from bond_core.store import TrainingRecord, open_store
from bond_trainer import run_training, training_run
from bond_trainer.causes import first_cause
from bond_trainer.draws import UnusablePromptsError
from bond_trainer.held_out import HeldOut
from bond_trainer.opening import open_parts
from bond_trainer.progress import Progress
from bond_trainer.rollouts import derived_seed
from bond_trainer.training_run import TrainingRun

POISON = """

def picky(prompts, completions, **kwargs):
    if any("poison" in prompt[-1]["content"] for prompt in prompts):
        raise ValueError("poison has no reward")
    return reward(prompts, completions)
"""


def with_reward(config: BondConfig, scorer: str, name: str) -> BondConfig:
    """The configuration with another function of the rewards' file as `scorer` or `judge`."""
    given = getattr(config, scorer)
    function = given.function.replace(":reward", f":{name}")
    return config.model_copy(update={scorer: given.model_copy(update={"function": function})})


def held_out_file(folder: Path) -> Path:
    """Eleven prompts: nine good ones, one without a reward, and one too long for the model."""
    texts = [m[0].content for m in messages_of(Split.GATE, 9)]
    texts[1:1] = ["poison", "too long " * 2000]
    file = folder / "gate.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    return file


async def test_held_out_prompts_that_cannot_be_used_are_replaced(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    evaluation = {"num_prompts": 8, "min_prompts": 8, "gate_prompts": held_out_file(tmp_path)}
    config = with_reward(
        config_of(tmp_path, tiny_policy_path, evaluation=evaluation), "scorer", "picky"
    )
    with (tmp_path / "rewards.py").open("a") as file:
        file.write(POISON)
    async with open_parts(config, None) as parts:
        found = await parts.held_out.resolve(parts.engine, parts.scorers)
        assert found is not None
        assert list(found.prompts) == messages_of(Split.GATE, 8)
        assert len(parts.held_out.unusable) == 2
        assert found.reference.rewards_PS.shape[0] == 8


async def test_an_evaluation_goes_on_without_the_prompts_it_cannot_use(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    class Refusing:
        """A proposer to whose answer on the first prompt no scorer gives a number."""

        def __init__(self) -> None:
            self.asked: list[HeldOut] = []

        async def propose(self, step: int, held_out: HeldOut, window: Mapping[str, int]) -> str:
            self.asked.append(held_out)
            if len(self.asked) == 1:
                raise UnusablePromptsError(held_out.prompts[:1], BondError("not a number"))
            return "proposed"

    config = config_of(tmp_path, tiny_policy_path)
    async with open_parts(config, prompts_file(tmp_path)) as parts:
        proposer = Refusing()
        parts = replace(parts, proposer=proposer)  # type: ignore[arg-type]
        run = TrainingRun(parts, Progress(parts.store, "run"), asyncio.Event(), 1)
        assert await run._evaluate() == "proposed"
    first, second = proposer.asked
    assert first.prompts[0] not in second.prompts


async def test_a_failed_evaluation_stays_visible_while_training_goes_on(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    evaluation = {"every_steps": 2, "num_prompts": 8, "min_prompts": 8}
    config = config_of(tmp_path, tiny_policy_path, poll_s=0.01, evaluation=evaluation)
    config = with_reward(config, "judge", "broken")
    seen: list[TrainingRecord] = []
    await run_training(
        config, prompts_file=prompts_file(tmp_path), max_steps=3, on_progress=seen.append
    )
    [later] = [r for r in seen if (r.state, r.step) == ("evaluating", 3) and r.error][:1]
    assert later.error is not None
    assert later.error.startswith("evaluation at step 2:")
    assert "no reward today" in later.error
    assert "eval/version" not in seen[-1].metrics


def test_the_cause_of_nested_groups_is_found() -> None:
    cause = ValueError("the cause")
    assert first_cause(ExceptionGroup("a", [ExceptionGroup("b", [cause])])) is cause
    assert first_cause(cause) is cause


async def test_the_stored_error_names_what_failed_in_a_group(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*args: Any, **kwargs: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            raise ValueError("the engine is on fire")

    monkeypatch.setattr(training_run, "collect", failing)
    config = config_of(tmp_path, tiny_policy_path)
    with pytest.raises(ValueError, match="on fire"):
        await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=1)
    store = await open_store(config.store_url)
    report = await store.training.latest()
    await store.close()
    assert report is not None
    assert (report.state, report.error) == ("failed", "ValueError: the engine is on fire")


async def test_every_step_has_its_own_seed(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    collect = training_run.collect

    async def recorded(*args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["seed"])
        return await collect(*args, **kwargs)

    monkeypatch.setattr(training_run, "collect", recorded)
    config = config_of(tmp_path, tiny_policy_path)
    stop = asyncio.Event()

    def watch(record: TrainingRecord) -> None:
        if record.state == "evaluating":
            stop.set()

    await run_training(
        config, prompts_file=prompts_file(tmp_path), max_steps=3, stop=stop, on_progress=watch
    )
    assert seeds == [derived_seed(config.trainer.seed, "rollouts", step) for step in range(3)]
    assert len(set(seeds)) == 3


async def test_the_process_becomes_as_nice_as_configured(
    tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = [2]

    def nice(increment: int) -> int:
        level[0] += increment
        return level[0]

    monkeypatch.setattr(os, "nice", nice)
    stop = asyncio.Event()
    stop.set()
    await run_training(config_of(tmp_path, tiny_policy_path, nice=5), stop=stop)
    assert level == [5]


async def test_a_lost_lease_ends_the_run_and_says_why(tmp_path: Path) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'log.db'}")
    assert await store.leases.acquire("trainer", "another", 60.0)
    progress = Progress(store, "run")
    with pytest.raises(StoreUnavailableError, match="taken by another trainer"):
        async with progress.heartbeat("trainer", 30.0):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=120)
    await store.close()
