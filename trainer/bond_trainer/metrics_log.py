"""What every step measured, on disk: `metrics.jsonl`, and TensorBoard's event files if wanted.

A row is `{"step": …, "time": …, "train/loss": …, …}`, one for each update and each evaluation. A
run that goes on from a checkpoint drops what was written after it, so that no step appears twice.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bond_core.errors import ConfigError

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """The rows of one training run, in one folder."""

    def __init__(self, directory: Path, *, tensorboard: bool = False) -> None:
        self._directory = directory
        self._tensorboard = tensorboard
        self._writer: Any = None

    def open_at(self, step: int) -> None:
        """Begin, or go on after `step`. Raises `ConfigError` if TensorBoard's writer is missing."""
        self._directory.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(self._directory) if row["step"] <= step]
        temporary = self._file.with_suffix(f".{os.getpid()}")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self._file)
        if self._tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ModuleNotFoundError as error:
                raise ConfigError(
                    "trainer.tensorboard needs the package tensorboardX: "
                    "pip install 'bondserve[trainer]', or set it to false"
                ) from error
            self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """One row: numbers as they are, everything else that JSON knows too."""
        now = time.time()
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, "time": now, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step, walltime=now)
            self._writer.flush()

    def latest(self, prefix: str) -> dict[str, Any]:
        """The values under a prefix, such as `eval`, in the last row that has any."""
        for row in reversed(read_metrics(self._directory)):
            if found := {k: v for k, v in row.items() if k.startswith(f"{prefix}/")}:
                return found
        return {}

    def close(self) -> None:
        """End TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()

    @property
    def _file(self) -> Path:
        return self._directory / METRICS_FILE


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows in a folder, oldest first; a last line that a crash tore is left out."""
    file = directory / METRICS_FILE
    if not file.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
