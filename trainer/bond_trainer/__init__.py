"""The background learner: from logged prompts to better policy versions.

    loop.py             the process; training_run.py what happens in which order
    opening.py          store, model, engine, scorers: opened in one place
    prompts.py          the log, or a file, as a source of prompts; prompt_pool.py bounds their use
    prompt_files.py     the lines of such a file, and which are left out
    curation/           which of them come in, one rule per file
    winners.py          examples from logged Best-of-N; winners_phase.py learns from them
    rollouts.py         samples of policy and anchor, with rewards
    learner.py          the update; lora.py the two adapters; logprobs.py, moving_average.py
    objectives/         one file per loss
    memory.py           how much a run needs; memory_report.py says it before it starts
    held_out.py         the prompts of the gate; reference_draws.py the reference on them
    draws.py            scored samples; metrics.py, kl.py and laws_along.py what they say
    evaluation/         `bond eval`: fresh samples, its own measures, its picture
    gate.py             the decision; gate_guards.py, gate_levels.py; variety.py, suite.py
    promotion.py        writes and proposes the version; probe.py
    checkpoints.py      what a restart takes up
    progress.py         what the trainer says of itself; metrics_log.py every step of it on disk
    progress_bar.py     the same for who watches; standing.py where a policy stands
    library.py          `train`, for scripts and notebooks; loaded_models.py its models in memory
    export.py           a version for others; model_card.py

`run_training` and `train` are the doors; they import torch when they are called.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from bond_core.config import (
    BondConfig,
    FixedBondConfig,
    GkdConfig,
    JBondConfig,
    RlooConfig,
)
from bond_core.store.records import TrainingRecord
from bond_trainer.library import TrainingResult, train

__all__ = [
    "FixedBondConfig",
    "GkdConfig",
    "JBondConfig",
    "RlooConfig",
    "TrainingResult",
    "run_training",
    "train",
]


async def run_training(
    config: BondConfig,
    *,
    prompts_file: Path | None = None,
    max_steps: int | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[TrainingRecord], None] | None = None,
) -> None:
    """Learn until stopped; see `bond_trainer.loop.run_training`."""
    from bond_trainer import loop

    await loop.run_training(
        config,
        prompts_file=prompts_file,
        max_steps=max_steps,
        stop=stop,
        on_progress=on_progress,
    )
