"""A trainer that is killed and started again ends, bit for bit, where an unbroken one does."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stored import completion
from tiny_training import config_of, messages_of, prompts_file

from bond_core.config import BondConfig
from bond_core.holdout import Split
from bond_core.store import TrainingRecord, open_store
from bond_trainer import run_training
from bond_trainer.checkpoints import CheckpointError, Checkpoints, Snapshot

HALF = 4
"""Steps before the kill, at least, and steps after the last checkpoint that it leaves."""


async def frozen_log(config: BondConfig) -> None:
    """200 rows of the log that may be learned from, and nobody who adds to them."""
    store = await open_store(config.store_url)
    rows = [
        completion(f"row-{number}", messages=messages)
        for number, messages in enumerate(messages_of(Split.TRAIN, 200))
    ]
    await store.completions.record_many(rows)
    await store.close()


def config_in(folder: Path, model: Path, **trainer: Any) -> BondConfig:
    folder.mkdir()
    return config_of(
        folder,
        model,
        checkpoint_every_steps=2,
        evaluation={"every_steps": 100},
        max_epochs=50,  # so that it never comes to its end before it is killed
        **trainer,
    )


def kill_at_a_random_moment(config: BondConfig, folder: Path, prompts: Path | None) -> str:
    """Start `bond train`, and kill -9 it somewhere after its checkpoint of step `HALF`.

    Returns the name of its newest checkpoint."""
    file = folder / "bond.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "bond_cli", "train", "--config", str(file)]
    command += ["--prompts", str(prompts)] if prompts is not None else []
    log = (folder / "log").open("w")
    child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not (config.checkpoints_dir / f"step-{HALF:09d}").exists():
            assert child.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
    finally:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        log.close()
    return max(path.name for path in config.checkpoints_dir.glob("step-*"))


async def trained(
    config: BondConfig, max_steps: int, prompts: Path | None
) -> tuple[dict[str, Any], Snapshot]:
    """The last report's metrics without times, and the last checkpoint."""
    seen: list[TrainingRecord] = []
    await asyncio.wait_for(
        run_training(config, prompts_file=prompts, max_steps=max_steps, on_progress=seen.append),
        timeout=120,
    )
    found = Checkpoints(config.checkpoints_dir)
    newest = max(config.checkpoints_dir.glob("step-*"))
    settings = yaml.safe_load((newest / "state.json").read_text())["settings"]
    snapshot = found.latest(settings)
    assert snapshot is not None
    metrics = {k: v for k, v in seen[-1].metrics.items() if not k.startswith("seconds/")}
    return metrics, snapshot


def assert_same(ours: Any, theirs: Any, where: str = "") -> int:
    """Equal to the last bit, at any depth; returns how many tensors were compared."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
        return 1
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        return sum(assert_same(value, theirs[key], f"{where}.{key}") for key, value in ours.items())
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        return sum(
            assert_same(a, b, f"{where}[{i}]")
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        )
    assert ours == theirs, where
    return 0


@pytest.mark.parametrize(
    ("from_file", "objective"),
    [(False, {"eta": 0.1}), (True, {"type": "bond", "n": 2, "anchor_every_steps": 3})],
    ids=["log-jbond", "file-bond"],
)
async def test_killed_and_resumed_equals_unbroken_bit_for_bit(
    tiny_policy_path: Path, tmp_path: Path, from_file: bool, objective: dict[str, Any]
) -> None:
    """Also where the rate decays, so that the schedule's place counts."""
    prompts = prompts_file(tmp_path, 200) if from_file else None
    settings = {"objective": objective, "learning_rate_decay_steps": 20}
    broken = config_in(tmp_path / "broken", tiny_policy_path, **settings)
    await frozen_log(broken)
    killed_at = await asyncio.to_thread(
        kill_at_a_random_moment, broken, tmp_path / "broken", prompts
    )
    steps = int(killed_at.removeprefix("step-")) + HALF
    metrics, snapshot = await trained(broken, steps, prompts)

    whole = config_in(tmp_path / "whole", tiny_policy_path, **settings)
    await frozen_log(whole)
    whole_metrics, whole_snapshot = await trained(whole, steps, prompts)
    assert snapshot.step == whole_snapshot.step == steps
    assert assert_same(dict(snapshot.learner), dict(whole_snapshot.learner)) > 20
    assert snapshot.run == whole_snapshot.run
    assert metrics == whole_metrics
    assert "train/loss" in metrics


async def test_a_disk_that_refuses_checkpoints_is_shown_and_then_ends_the_run(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """A file stands where the directory was: every write fails until it is gone."""
    config = config_in(tmp_path / "run", tiny_policy_path)
    await frozen_log(config)
    directory, away = config.checkpoints_dir, tmp_path / "away"
    seen: list[TrainingRecord] = []

    def watch(record: TrainingRecord) -> None:
        seen.append(record)
        if record.state == "training" and not away.exists():
            shutil.move(directory, away)
            directory.write_text("not a directory")

    with pytest.raises(CheckpointError):
        await asyncio.wait_for(run_training(config, max_steps=100, on_progress=watch), timeout=120)
    assert seen[-1].state == "failed"
    assert seen[-1].step == 6  # the third checkpoint in a row that failed
    assert "the checkpoint of step 6 could not be written" in (seen[-1].error or "")


async def test_an_evaluation_that_a_crash_cut_off_is_made_up_for(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """While a winners phase is still wanted, a scheduled step is saved before its evaluation."""

    async def proposals(name: str, crash: bool) -> list[tuple[str, int]]:
        folder = tmp_path / name
        gate = prompts_file(tmp_path, 16)
        config = config_of_evaluating(folder, tiny_policy_path, gate)
        await frozen_log(config)

        def crashing(record: TrainingRecord) -> None:
            if record.state == "evaluating" and record.step == 2:
                raise RuntimeError("crash")

        if crash:
            with pytest.raises(RuntimeError, match="crash"):
                await run_training(config, max_steps=4, on_progress=crashing)
        await asyncio.wait_for(run_training(config, max_steps=4), timeout=120)
        store = await open_store(config.store_url)
        found = [(p.version, p.step) for p in await store.policies.all() if p.version != "v0000"]
        await store.close()
        return found

    assert await proposals("crashed", crash=True) == [("v0001", 2), ("v0002", 4)]
    assert await proposals("whole", crash=False) == [("v0001", 2), ("v0002", 4)]


def config_of_evaluating(folder: Path, model: Path, gate: Path) -> BondConfig:
    folder.mkdir()
    return config_of(
        folder,
        model,
        checkpoint_every_steps=100,
        evaluation={"every_steps": 2, "num_prompts": 8, "min_prompts": 8, "gate_prompts": gate},
    )
