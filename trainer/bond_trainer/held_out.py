"""The held-out prompts that a gate decision rests on: from a file, or from the log."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bond_core.config import (
    BondConfig,
    ClassifierScorerConfig,
    FunctionScorerConfig,
    PoolingScorerConfig,
)
from bond_core.engines.base import Engine
from bond_core.holdout import Split
from bond_core.store import Store
from bond_core.types import Message
from bond_trainer.draws import Draws, Scorers, UnusablePromptsError
from bond_trainer.prompt_files import prompts_of_split, read_prompt_file, read_prompts
from bond_trainer.prompt_pool import digest_of, opening
from bond_trainer.reference_draws import reference_draws

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out prompts with the reference's samples on them."""

    prompts: Sequence[tuple[Message, ...]]
    reference: Draws


@dataclass(frozen=True, slots=True)
class HeldOutSource:
    """Finds the prompts of one held-out half and draws from the reference once per set.

    They come from the configured file; without one from the training prompts' file, by the split;
    without that from the log, oldest first, so that the set grows with the traffic.
    """

    config: BondConfig
    store: Store
    split: Split
    prompts_file: Path | None = None
    unusable: set[str] = field(default_factory=set[str])
    """Digests of prompts that the engine or a scorer refused in this run."""

    def leave_out(self, error: UnusablePromptsError) -> None:
        """Never evaluate on these prompts again in this run."""
        logger.warning("left out of the held-out prompts: %s", error)
        self.unusable.update(digest_of(messages) for messages in error.prompts)

    async def prompts(self) -> list[tuple[Message, ...]]:
        """At most `num_prompts` distinct ones.

        A set that still grows is cut to `min_prompts` times a power of two, so that the reference
        is drawn anew at a few sizes and not at every evaluation.
        """
        evaluation = self.config.trainer.evaluation
        file = evaluation.gate_prompts if self.split is Split.GATE else evaluation.report_prompts
        if file is not None:
            found = list(read_prompt_file(file).by_line.values())
        elif self.prompts_file is not None:
            found = prompts_of_split(self.prompts_file, self.split)
        else:
            found = await self.store.completions.prompts_of(
                self.split, limit=evaluation.num_prompts + len(self.unusable)
            )
        by_digest = {digest_of(messages): messages for messages in found}
        distinct = [m for digest, m in by_digest.items() if digest not in self.unusable]
        return distinct[
            : _stable_size(len(distinct), evaluation.min_prompts, evaluation.num_prompts)
        ]

    async def resolve(self, engine: Engine, scorers: Scorers) -> HeldOut | None:
        """The prompts and the reference's samples; None while there are too few prompts.

        A prompt that cannot be evaluated on is left out, and another takes its place.
        """
        while len(prompts := await self.prompts()) >= self.config.trainer.evaluation.min_prompts:
            try:
                return HeldOut(prompts, await self._reference(engine, prompts, scorers))
            except UnusablePromptsError as error:
                self.leave_out(error)
        return None

    async def _reference(
        self, engine: Engine, prompts: Sequence[tuple[Message, ...]], scorers: Scorers
    ) -> Draws:
        return await reference_draws(
            engine,
            prompts,
            self.config.sampling.params(),
            self.config.trainer.evaluation.reference_samples_per_prompt,
            self.config.trainer.seed,
            scorers,
            self.config.data_dir / "evaluation",
            reference_sources(self.config),
        )


def reference_sources(config: BondConfig) -> list[Path]:
    """What the reference's samples and their scores depend on, on disk: the model's folder, and
    the folders or Python files of the scorers."""
    found = [config.model.folder]
    for scorer in (config.scorer, config.judge, config.gold):
        if isinstance(scorer, ClassifierScorerConfig | PoolingScorerConfig):
            found += [scorer.path] if scorer.path is not None else []
        elif isinstance(scorer, FunctionScorerConfig) and ".py:" in scorer.function:
            found.append(Path(scorer.function.rpartition(":")[0]))
    return found


def held_out_openings(config: BondConfig) -> frozenset[str]:
    """First messages of the configured held-out files: never learned from, whatever the split
    says of them."""
    evaluation = config.trainer.evaluation
    suite = config.trainer.gate.suite
    named = (evaluation.gate_prompts, evaluation.report_prompts, suite and suite.prompts)
    files = [f for f in named if f is not None]
    return frozenset(opening(messages) for file in files for messages in read_prompts(file))


def _stable_size(available: int, smallest: int, largest: int) -> int:
    if available >= largest:
        return largest
    size = smallest
    while size * 2 <= available:
        size *= 2
    return size
