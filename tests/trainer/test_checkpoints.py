"""Checkpoints appear whole, carry the random states, and refuse another run's settings."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bond_core.errors import ConfigError
from bond_trainer.checkpoints import Checkpoints, Snapshot


def snapshot(step: int, fingerprint: str = "same") -> Snapshot:
    learner = {"policy": {"b": torch.full((2,), float(step))}, "optimizer": {"state": {}}}
    return Snapshot(step, fingerprint, learner, {"seen": [step]})


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10, 100):
        checkpoints.save(snapshot(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000010", "step-000000100"]
    found = checkpoints.latest("same")
    assert found is not None
    assert (found.step, found.run) == (100, {"seen": [100]})
    assert found.learner["policy"]["b"].tolist() == [100.0, 100.0]


def test_random_streams_continue(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    checkpoints.latest("same")
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    checkpoints.save(Snapshot(1, "same", {}, {"later": True}))
    found = checkpoints.latest("same")
    assert found is not None
    assert found.run == {"later": True}


def test_a_half_written_checkpoint_is_swept_away(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".writing-abc").mkdir()
    assert checkpoints.latest("same") is None
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    with pytest.raises(TypeError):
        checkpoints.save(Snapshot(2, "same", {}, {"not json": object()}))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


def test_other_settings_are_refused_with_the_remedy(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    with pytest.raises(ConfigError, match="move the data directory's 'checkpoints' away"):
        checkpoints.latest("other")


def test_a_checkpoint_that_misses_a_file_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(1))
    for step, missing in ((2, "state.json"), (3, "learner.pt")):
        (checkpoints.save(snapshot(step)) / missing).unlink()
        checkpoints.save(snapshot(1))
    found = checkpoints.latest("same")
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
            checkpoints.save(Snapshot(1, "same", {}, {"later": True}))
    found = checkpoints.latest("same")
    assert found is not None
    assert found.run == {"seen": [1]}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
