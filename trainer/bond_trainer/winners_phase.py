"""The winners phase: start the policy on what Best-of-N already returned to users.

The cheapest first step: it samples nothing. It ends with a hard update, so that J-BOND goes on
from the policy that was learned, its anchor beside it. The phase is one unit: a trainer that is
stopped inside it begins it again.
"""

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from bond_core.config import FixedBondConfig
from bond_trainer.logprobs import TokenRow
from bond_trainer.opening import Parts
from bond_trainer.progress import Progress
from bond_trainer.winners import logged_winners

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WinnersOutcome:
    """How an attempt at the phase ended."""

    end: Literal["learned", "too_few", "stopped"]
    log_window: Mapping[str, int] = field(default_factory=dict[str, int])
    """The rows learned from: `first_seq`, `last_seq`, `winners_rows`."""


async def run_winners_phase(
    parts: Parts, progress: Progress, stop: asyncio.Event
) -> WinnersOutcome:
    """Learn from the winners in the log, if there are enough: otherwise nothing is changed.

    After `learned` the learner is in its `rollouts` phase; after `stopped` it is half way, to be
    thrown away.
    """
    config, learner = parts.config.trainer, parts.learner
    winners = await logged_winners(
        parts.store,
        parts.config.arms.best_of,
        max_rows=config.winners.max_rows,
        max_prompt_tokens=config.max_prompt_tokens,
        held_out=parts.openings,
    )
    progress.counts.update({f"winners_{k}": v for k, v in winners.counts.items()})
    if not winners.examples or len(winners.examples) < config.winners.min_rows:
        return WinnersOutcome("too_few")
    logger.info("winners phase: %d rows", len(winners.examples))
    num_steps = math.ceil(
        config.winners.epochs * len(winners.examples) / config.winners.rows_per_step
    )
    learner.begin("winners", num_steps)
    await progress.enter("training")
    batches = epochs_of(winners.examples, config.winners.rows_per_step, config.seed)
    for number in range(num_steps):
        if stop.is_set():
            return WinnersOutcome("stopped")
        report = await asyncio.to_thread(learner.learn_from_winners, next(batches))
        progress.record_metrics(
            "winners", {**report.metrics, "step": number + 1, "num_steps": num_steps}
        )
    if not isinstance(config.objective, FixedBondConfig):  # whose anchor is still the reference
        learner.set_anchor()
    learner.begin("rollouts")
    window = {
        "first_seq": winners.seqs[0],
        "last_seq": winners.seqs[-1],
        "winners_rows": len(winners.seqs),
    }
    return WinnersOutcome("learned", window)


def epochs_of(rows: Sequence[TokenRow], rows_per_step: int, seed: int) -> Iterator[list[TokenRow]]:
    """Batches for ever, each epoch a new seeded permutation; a batch may span two epochs."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < rows_per_step:
            waiting += torch.randperm(len(rows), generator=generator).tolist()
        yield [rows[i] for i in waiting[:rows_per_step]]
        del waiting[:rows_per_step]
