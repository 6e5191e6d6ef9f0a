"""A whole run whose servers go away: it waits, goes on with the same prompts, or ends in order."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import config_of, factors_of, prompts_file

from bond_core.config import BondConfig
from bond_core.engines.base import Engine, Partial
from bond_core.errors import EngineUnavailableError
from bond_core.store import TrainingRecord
from bond_core.types import Conversation, Generation, SamplingParams
from bond_trainer.named_versions import NamedVersions
from bond_trainer.opening import Parts, open_parts
from bond_trainer.progress import Progress
from bond_trainer.publishing import Publisher
from bond_trainer.training_run import TrainingRun

Away = Callable[[str], bool]


class Servers(NamedVersions):
    """The trainer's own engine, which is away where `away` says so of a version's request."""

    def __init__(self, engine: Engine, away: Away) -> None:
        super().__init__(engine)
        self._away = away

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        if self._away(version):
            raise EngineUnavailableError("no server answers")
        return await super().generate(version, prompt, params, n, partial)


class AsServed:
    """A publisher whose engine may be waited for."""

    served = True

    def __init__(self, own: Publisher) -> None:
        self.publish = own.publish


def served(parts: Parts, away: Away) -> Parts:
    engine: Any = Servers(parts.engine, away)
    publisher: Any = AsServed(parts.publisher)
    return replace(
        parts, engine=engine, publisher=publisher, proposer=replace(parts.proposer, engine=engine)
    )


async def trained(
    config: BondConfig, folder: Path, away: Away, stop: asyncio.Event | None = None
) -> list[TrainingRecord]:
    """What a run of three steps reports; its last record is of the end."""
    seen: list[TrainingRecord] = []
    async with open_parts(config, prompts_file(folder)) as parts:
        progress = Progress(parts.store, "run", seen.append)
        run = TrainingRun(served(parts, away), progress, stop or asyncio.Event(), 3)
        try:
            await run.run()
        finally:
            await progress.report()
    return seen


def small(folder: Path, model: Path, **trainer: Any) -> BondConfig:
    evaluation = {
        "every_steps": 2,
        "num_prompts": 8,
        "min_prompts": 8,
        "reference_samples_per_prompt": 4,
    }
    return config_of(folder, model, poll_s=0.001, evaluation=evaluation, **trainer)


async def test_a_run_that_had_to_wait_learns_what_an_unbroken_one_does(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    unbroken, broken = (small(tmp_path / name, tiny_policy_path) for name in ("a", "b"))
    calls = 0

    def away(version: str) -> bool:
        """In every phase: rollouts, the reference's draws, and the evaluation."""
        nonlocal calls
        calls += 1
        return calls % 45 == 7

    plain = await trained(unbroken, tmp_path / "a", lambda _: False)
    seen = await trained(broken, tmp_path / "b", away)
    waits = [r for r in seen if r.error == "waiting for servers: no server answers"]
    assert {record.step for record in waits} >= {0, 2}
    assert "waiting" not in {record.state for record in plain}
    assert (seen[-1].step, seen[-1].error, seen[-1].counts) == (3, None, plain[-1].counts)
    expected, found = factors_of(unbroken), factors_of(broken)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


async def test_a_run_that_is_stopped_while_it_waits_leaves_the_step_out(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config, stop = small(tmp_path, tiny_policy_path), asyncio.Event()
    calls = 0

    def away(version: str) -> bool:
        nonlocal calls
        calls += 1
        if calls > 40:  # in the second step
            stop.set()
        return calls > 40

    seen = await trained(config, tmp_path, away, stop)
    assert (seen[-1].step, seen[-1].counts["engine_away"]) == (1, 16)
    seen = await trained(config, tmp_path, lambda _: False)
    assert (seen[-1].step, seen[-1].counts["used"]) == (3, 4 * 16)


async def test_patience_ends_with_a_checkpoint(tiny_policy_path: Path, tmp_path: Path) -> None:
    config = small(tmp_path, tiny_policy_path, rollouts={"max_pause_s": 0.02})
    calls = 0

    def away(version: str) -> bool:
        nonlocal calls
        calls += 1
        return calls > 40

    with pytest.raises(EngineUnavailableError, match=r"max_pause_s\) for its servers: no server"):
        await trained(config, tmp_path, away)
    assert [path.name for path in config.checkpoints_dir.glob("step-*")] == ["step-000000001"]
