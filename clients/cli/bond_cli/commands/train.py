"""`bond train`: the trainer alone, in this process."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

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
        int | None, typer.Option(help="Stop after so many steps.", show_default=False)
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
    log_to_stderr()
    with needs("trainer", "train"):
        from bond_trainer import run_training
    asyncio.run(run_training(resolved, prompts_file=prompts, max_steps=max_steps))
