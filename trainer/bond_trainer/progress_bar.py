"""A bar of steps with reward, KL and N_q beside Best-of-N, in a terminal or a notebook.

It listens to what a run reports of itself (`run_training(on_progress=…)`), some times a minute and
at every change of state.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bond_core.store.records import TrainingRecord
from bond_trainer.standing import curve_line, evaluation_standing, training_standing

Listener = Callable[[TrainingRecord], None]
_BAR_WIDTH = 32


def wanted_by_default() -> bool:
    """Whether anybody watches: standard output is a terminal or a notebook's cell."""
    return sys.stdout.isatty() or Console().is_jupyter


def rendered(record: TrainingRecord | None, max_steps: int, elapsed_s: float) -> RenderableType:
    """The bar and up to three lines: the last step, the last evaluated version, Best-of-N.

    `max_steps` 0 is a run without an end to aim at: steps and time alone.
    """
    step = record.step if record else 0
    head = Table.grid(padding=(0, 1))
    time_text = str(timedelta(seconds=int(elapsed_s)))
    state = record.state if record else "starting"
    if max_steps:
        bar = ProgressBar(total=max_steps, completed=step, width=_BAR_WIDTH)
        head.add_row(bar, f"{step}/{max_steps} steps", time_text, state)
    else:
        head.add_row(f"{step} steps", time_text, state)
    metrics: Mapping[str, Any] = record.metrics if record else {}
    lines = [
        Text(f"{label}: {line}")
        for label, line in (
            ("last step", training_standing(metrics)),
            ("last version", evaluation_standing(metrics)),
            ("Best-of-N of the reference", curve_line(metrics)),
        )
        if line is not None
    ]
    return Group(head, *lines)


@contextmanager
def progress_bar(max_steps: int, console: Console | None = None) -> Iterator[Listener]:
    """Show a bar for as long as the context lasts; gives the listener for `on_progress`.

    `console` is standard output's unless given. Where that is neither a terminal nor a notebook,
    the bar's last state is printed once, at the end.
    """
    shown = console or Console()
    latest: list[TrainingRecord] = []
    started = time.monotonic()

    def now() -> RenderableType:
        record = latest[-1] if latest else None
        return rendered(record, max_steps, time.monotonic() - started)

    if shown.is_jupyter:
        yield _in_notebook(latest, now)
        return

    def listen(record: TrainingRecord) -> None:
        latest[:] = [record]

    with Live(console=shown, get_renderable=now, refresh_per_second=2):
        yield listen


def _in_notebook(latest: list[TrainingRecord], now: Callable[[], RenderableType]) -> Listener:
    """One output that is replaced: unlike rich's own, it needs no ipywidgets."""
    from IPython.display import display  # pyright: ignore[reportMissingImports]  # there in notebooks

    def text() -> dict[str, str]:
        console = Console(file=io.StringIO(), width=100, force_jupyter=False, color_system=None)
        with console.capture() as captured:
            console.print(now())
        return {"text/plain": captured.get()}

    handle: Any = display(text(), raw=True, display_id=True)

    def listen(record: TrainingRecord) -> None:
        latest[:] = [record]
        handle.update(text(), raw=True)

    return listen
