"""Checkpoints: everything that a restarted learner needs to go on as if nothing had happened.

A checkpoint is a directory that appears whole: written under a temporary name, synced, renamed.
The last two are kept. It decides what was consumed of the log: rows claimed after it are claimed
again, by the same holder.
"""

import io
import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from bond_core.errors import BondError, ConfigError

logger = logging.getLogger(__name__)

KEEP = 2
_TENSORS = "learner.pt"
_STATE = "state.json"
_PREFIX = "step-"
_TEMPORARY_PREFIX = ".writing-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a training run between two steps."""

    step: int
    settings: Mapping[str, Any]
    """JSON values that the state depends on; a run with others cannot take it up."""
    learner: Mapping[str, Any]
    """Nested mappings and lists of tensors and plain values: adapters, optimiser."""
    run: Mapping[str, Any]
    """JSON values: phase, counters, the prompt source."""


class CheckpointError(BondError):
    """The disk does not take a checkpoint, or gives none back: full, read-only, or failing."""


class Checkpoints:
    """The checkpoints of one training run, in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint with the random states of this process; drop all but the newest.

        Raises `CheckpointError` if the disk does not take it: those that were there stay.
        """
        try:
            return self._save(snapshot)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {snapshot.step} could not be written to "
                f"{self._directory}: {error.strerror or error}; the one before stays. Free some "
                "space there, or make the directory writable"
            ) from error

    def _save(self, snapshot: Snapshot) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=self._directory))
        try:
            tensors = {"learner": dict(snapshot.learner), "torch_rng": torch.get_rng_state()}
            _write_tensors(tensors, temporary / _TENSORS)
            state = {
                "step": snapshot.step,
                "settings": dict(snapshot.settings),
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

    def latest(self, settings: Mapping[str, Any]) -> Snapshot | None:
        """The newest checkpoint that can be read, with this process's random states set to what it
        saved; one that a disk has damaged is passed over for the one before, with a warning.

        None if there is none. Raises `ConfigError` naming every setting that it was made with and
        that differs now, and `CheckpointError` if there are some and none can be read.
        """
        self._remove_leftovers()
        complete = self._complete()
        for path in reversed(complete):
            try:
                state = json.loads((path / _STATE).read_text())
                tensors = torch.load(path / _TENSORS, weights_only=True)
            except (ValueError, RuntimeError, EOFError, OSError, UnpicklingError) as error:
                logger.warning("%s cannot be read and is passed over: %s", path, error)
                continue
            return self._taken_up(path, state, tensors, settings)
        if complete:
            raise CheckpointError(
                f"none of the checkpoints in {self._directory} can be read: put back a copy, or "
                "move them away to start a new learner"
            )
        return None

    def _taken_up(
        self,
        path: Path,
        state: Mapping[str, Any],
        tensors: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> Snapshot:
        differing = _differing(state.get("settings", {}), settings)
        if differing:
            raise ConfigError(
                f"{path} was made with other settings than this configuration's: "
                f"{'; '.join(differing)}. Restore them, or move the data directory's "
                "'checkpoints' away to start a new learner"
            )
        torch.set_rng_state(tensors["torch_rng"])
        _restore_random_states(state["random"])
        return Snapshot(state["step"], state["settings"], tensors["learner"], state["run"])

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


def _write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Raises `OSError` for a full disk, which torch's own writer reports as `RuntimeError`."""
    packed = io.BytesIO()
    torch.save(tensors, packed)
    path.write_bytes(packed.getbuffer())


def _differing(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """`key is present, was saved` of every setting that differs."""
    before, now = _flat(saved), _flat(present)
    return [
        f"{key} is {_shown(now, key)}, was {_shown(before, key)}"
        for key in sorted(before.keys() | now.keys())
        if key not in before or key not in now or before[key] != now[key]
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


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
