"""A bar for a terminal or a notebook: how far the run is, and what its policy is worth by now."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bond_core.store.records import TrainingRecord

_CURVE = re.compile(r"eval/best_of_(\d+)_reward")


class ProgressBar:
    """Shows the records that a trainer reports; `with ProgressBar(…) as bar: … bar.update`.

    `max_steps` 0 is a run without an end of its own, shown without a total.
    """

    def __init__(self, max_steps: int = 0, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[measured]}"),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=max_steps or None, measured="")
        self._version: object = None

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, record: TrainingRecord) -> None:
        """Show a record; an evaluation that is new also gets a line that stays."""
        self._progress.update(
            self._task,
            description=record.state,
            completed=record.step,
            measured=training_sentence(record.metrics),
        )
        version = record.metrics.get("eval/version")
        if version is not None and version != self._version:
            self._version = version
            self._progress.print(
                f"{version}, step {record.step}: {evaluation_sentence(record.metrics)}",
                highlight=False,
            )


@contextmanager
def progress_shown(
    wanted: bool | None, max_steps: int
) -> Iterator[Callable[[TrainingRecord], None] | None]:
    """A bar's `update` while the block runs; None for no bar. `wanted` None asks the terminal."""
    console = Console()
    if wanted is None:
        wanted = console.is_terminal or console.is_jupyter
    if not wanted:
        yield None
        return
    with ProgressBar(max_steps, console) as bar:
        yield bar.update


def training_sentence(metrics: Mapping[str, Any]) -> str:
    """Of the last step's samples; empty before the first."""
    reward = metrics.get("train/reward_policy_mean")
    if not isinstance(reward, int | float):
        return ""
    found = f"reward {reward:.3f}"
    ratio = metrics.get("train/log_ratio_mean")
    if isinstance(ratio, int | float):
        found += f", log-ratio to the anchor {ratio:+.2f}"
    return found


def evaluation_sentence(metrics: Mapping[str, Any]) -> str:
    """Reward, KL and N_q of the last evaluation, beside Best-of-n of the reference."""
    reward, kl_nats, n_q = (metrics.get(f"eval/{k}") for k in ("reward_mean", "kl_nats", "n_q"))
    if not isinstance(reward, int | float):
        return "not evaluated yet"
    parts = [f"reward {reward:.3f} {_beside_curve(reward, _curve(metrics))}"]
    if isinstance(kl_nats, int | float):
        parts.append(f"KL {kl_nats:.2f} nats")
    parts.append(f"N_q {n_q:.1f}" if isinstance(n_q, int | float) else "N_q beyond what is seen")
    return ", ".join(parts)


def _curve(metrics: Mapping[str, Any]) -> list[tuple[int, float]]:
    found = [(m, value) for key, value in metrics.items() if (m := _CURVE.fullmatch(key))]
    return sorted((int(match[1]), float(value)) for match, value in found)


def _beside_curve(reward: float, curve: list[tuple[int, float]]) -> str:
    """Where a reward lies among those of Best-of-n, n rising."""
    named = [(f"Best-of-{n}" if n > 1 else "the reference", value) for n, value in curve]
    below = [point for point in named if point[1] <= reward]
    above = [point for point in named if point[1] > reward]
    if below and above:
        (low, at_low), (high, at_high) = below[-1], above[0]
        return f"(between {low} {at_low:.3f} and {high} {at_high:.3f})"
    if above:
        return f"(below {above[0][0]} {above[0][1]:.3f})"
    return f"(above {below[-1][0]} {below[-1][1]:.3f})" if below else ""
