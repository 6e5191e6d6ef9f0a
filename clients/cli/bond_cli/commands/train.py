"""`bond train`: the trainer alone, in this process."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bond_cli.extras import needs
from bond_cli.failure import explains_failures
from bond_cli.lifeline import end_with_supervisor
from bond_cli.logs import log_to_stderr
from bond_cli.target import ConfigFile, DataDir, Judge, Model, RewardModel, Target, read_target


@explains_failures
def train(
    model: Model = None,
    reward_model: RewardModel = None,
    judge: Judge = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Train on this file of prompts (JSON lines) instead of the log."),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps.", show_default=False, min=1)
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="A bar with reward, KL and N_q; by default where output is a terminal.",
            show_default=False,
        ),
    ] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Start the trainer alone."""
    if supervised:
        end_with_supervisor()
    resolved = read_target(
        Target(
            model=model, reward_model=reward_model, judge=judge, config=config, data_dir=data_dir
        )
    )
    with needs("trainer", "train"):
        from bond_trainer import run_training
        from bond_trainer.progress_bar import progress_bar, wanted_by_default
    if not (wanted_by_default() if progress is None else progress):
        log_to_stderr()
        asyncio.run(run_training(resolved, prompts_file=prompts, max_steps=max_steps))
        return
    console = Console()
    log_to_stderr([AboveTheBar(console)])
    with progress_bar(max_steps or resolved.trainer.max_steps, console) as listen:
        asyncio.run(
            run_training(resolved, prompts_file=prompts, max_steps=max_steps, on_progress=listen)
        )


class AboveTheBar(logging.Handler):
    """Prints log lines where the bar is drawn: two writers of one terminal would mix."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
