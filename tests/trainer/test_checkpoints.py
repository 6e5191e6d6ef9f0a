"""Checkpoints appear whole, carry the random states, and refuse another run's settings."""

import random
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bond_core.errors import ConfigError
from bond_trainer.checkpoints import CheckpointError, Checkpoints, Snapshot

SAME = {"model": "abc", "trainer": {"lora": {"rank": 4, "alpha": 16.0}, "seed": 0}}


def snapshot(step: int, settings: Mapping[str, Any] = SAME) -> Snapshot:
    learner = {"policy": {"b": torch.full((2,), float(step))}, "optimizer": {"state": {}}}
    return Snapshot(step, settings, learner, {"seen": [step]})


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10, 100):
        checkpoints.save(snapshot(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000010", "step-000000100"]
    found = checkpoints.latest(SAME)
    assert found is not None
    assert (found.step, found.run) == (100, {"seen": [100]})
    assert found.learner["policy"]["b"].tolist() == [100.0, 100.0]


def test_random_streams_continue(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    checkpoints.latest(SAME)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    checkpoints.save(Snapshot(1, SAME, {}, {"later": True}))
    found = checkpoints.latest(SAME)
    assert found is not None
    assert found.run == {"later": True}


def test_a_half_written_checkpoint_is_swept_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".writing-abc").mkdir()
    assert checkpoints.latest(SAME) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    with pytest.raises(TypeError):
        checkpoints.save(Snapshot(2, SAME, {}, {"not json": object()}))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def test_other_settings_are_refused_by_name_with_the_remedy(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    other = {"model": "abc", "trainer": {"lora": {"rank": 8, "alpha": 16.0}}, "new": [1]}
    with pytest.raises(ConfigError) as refused:
        checkpoints.latest(other)
    assert str(refused.value) == (
        f"{tmp_path / 'step-000000001'} was made with other settings than this configuration's: "
        "new is [1], was not set; trainer.lora.rank is 8, was 4; trainer.seed is not set, was 0. "
        "Restore them, or move the data directory's 'checkpoints' away to start a new learner"
    )


def test_a_full_disk_leaves_the_last_one_and_says_so(tmp_path: Path) -> None:
    """The kernel refuses to write beyond a limit, in the middle of the tensors."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    large = {"policy": {"b": torch.zeros(100_000)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 2 could not be written .* the one before"):
            checkpoints.save(Snapshot(2, SAME, large, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    found = checkpoints.latest(SAME)
    assert found is not None
    assert found.run == {"seen": [1]}
    checkpoints.save(Snapshot(2, SAME, large, {}))
    found = checkpoints.latest(SAME)
    assert found is not None
    assert found.step == 2


def test_a_checkpoint_that_misses_a_file_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    for step, missing in ((2, "state.json"), (3, "learner.pt")):
        (checkpoints.save(snapshot(step)) / missing).unlink()
        checkpoints.save(snapshot(1))
    found = checkpoints.latest(SAME)
    assert found is not None
    assert found.step == 1


def test_dying_while_the_same_step_is_replaced_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    rename, deleted = Path.rename, []

    def dying(self: Path, target: Path) -> Path:
        if target.name == "step-000000001":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        patch.setattr("shutil.rmtree", lambda path, **_: deleted.append(path))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(Snapshot(1, SAME, {}, {"later": True}))
    found = checkpoints.latest(SAME)
    assert found is not None
    assert found.run == {"seen": [1]}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(snapshot(step))
    tensors = tmp_path / "step-000000002" / "learner.pt"
    tensors.write_bytes(tensors.read_bytes()[:200])
    found = checkpoints.latest(SAME)
    assert found is not None
    assert found.step == 1
    (tmp_path / "step-000000001" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        checkpoints.latest(SAME)
