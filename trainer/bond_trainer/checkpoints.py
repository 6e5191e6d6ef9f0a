"""Checkpoints: everything that a restarted learner needs to go on as if nothing had happened.

A checkpoint is a directory that appears whole: written under a temporary name, synced, renamed.
The last two are kept. It decides what was consumed of the log: rows claimed after it are claimed
again, by the same holder.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bond_core.errors import ConfigError

KEEP = 2
_TENSORS = "learner.pt"
_STATE = "state.json"
_PREFIX = "step-"
_TEMPORARY_PREFIX = ".writing-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a training run between two steps."""

    step: int
    fingerprint: str
    """Of the settings that the tensors depend on; a run with others cannot take them up."""
    learner: Mapping[str, Any]
    """Nested mappings and lists of tensors and plain values: adapters, optimiser."""
    run: Mapping[str, Any]
    """JSON values: phase, counters, the prompt source."""


class Checkpoints:
    """The checkpoints of one training run, in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint with the random states of this process; drop all but the newest."""
        self._directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=self._directory))
        try:
            tensors = {"learner": dict(snapshot.learner), "torch_rng": torch.get_rng_state()}
            torch.save(tensors, temporary / _TENSORS)
            state = {
                "step": snapshot.step,
                "fingerprint": snapshot.fingerprint,
                "run": dict(snapshot.run),
                "random": _random_states(),
            }
            (temporary / _STATE).write_text(json.dumps(state))
            for file in (temporary / _TENSORS, temporary / _STATE, temporary):
                _sync(file)
            final = self._directory / f"{_PREFIX}{snapshot.step:09d}"
            self._put(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in self._complete()[:-KEEP]:
            shutil.rmtree(old)
        return final

    def latest(self, fingerprint: str) -> Snapshot | None:
        """The newest complete checkpoint, with this process's random states set to what it saved.

        None if there is none. Raises `ConfigError` if it was made with other settings.
        """
        self._remove_leftovers()
        complete = self._complete()
        if not complete:
            return None
        path = complete[-1]
        state = json.loads((path / _STATE).read_text())
        if state["fingerprint"] != fingerprint:
            raise ConfigError(
                f"{path} was made with another model, adapter shape or sampling than this "
                "configuration's: restore the settings, or move the data directory's "
                "'checkpoints' away to start a new learner"
            )
        tensors = torch.load(path / _TENSORS, weights_only=True)
        torch.set_rng_state(tensors["torch_rng"])
        _restore_random_states(state["random"])
        return Snapshot(state["step"], state["fingerprint"], tensors["learner"], state["run"])

    def _put(self, temporary: Path, final: Path) -> None:
        """Rename into place. An earlier checkpoint of the step stands aside until then, so that
        there is a whole one at any moment; `_remove_leftovers` knows its name."""
        aside = self._directory / f"{_TEMPORARY_PREFIX}{final.name}"
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        temporary.rename(final)
        _sync(self._directory)
        shutil.rmtree(aside, ignore_errors=True)

    def _complete(self) -> list[Path]:
        return sorted(path for path in self._directory.glob(f"{_PREFIX}*") if _is_complete(path))

    def _remove_leftovers(self) -> None:
        """Put back a checkpoint that stood aside when the process died; delete what was never
        finished."""
        for aside in self._directory.glob(f"{_TEMPORARY_PREFIX}{_PREFIX}*"):
            final = self._directory / aside.name.removeprefix(_TEMPORARY_PREFIX)
            if _is_complete(aside) and not final.exists():
                aside.rename(final)
        for path in self._directory.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(path)


def _is_complete(path: Path) -> bool:
    return (path / _STATE).is_file() and (path / _TENSORS).is_file()


def _random_states() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def _restore_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
