"""The user's own suite: answers that show whether a challenger forgot what it should keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bond_core.config import BondConfig, FunctionScorerConfig, SuiteConfig
from bond_core.engines.base import Engine
from bond_core.errors import ConfigError, ScoringError
from bond_core.rewards.base import Scorer
from bond_core.types import Message
from bond_trainer.draws import FloatArray, Scorers, UnusablePromptsError, draw_scored
from bond_trainer.prompt_files import read_prompts
from bond_trainer.reference_draws import reference_draws
from bond_trainer.rollouts import derived_seed


@dataclass(frozen=True, slots=True)
class Suite:
    """Prompts with the function that scores answers to them."""

    config: BondConfig
    prompts: Sequence[tuple[Message, ...]]
    scorer: Scorer
    sources: Sequence[Path]
    """What the scores depend on, on disk."""

    async def scores(
        self, engine: Engine, version: str, step: int
    ) -> tuple[FloatArray, FloatArray]:
        """Of this version and of the reference, `(prompts, samples)` each; the reference's are
        drawn once and kept. Raises `ScoringError` if an answer cannot be drawn or scored."""
        trainer, params = self.config.trainer, self.config.sampling.params()
        scorers = Scorers(self.scorer)
        try:
            ours = await draw_scored(
                engine,
                version,
                self.prompts,
                params,
                trainer.evaluation.samples_per_prompt,
                derived_seed(trainer.seed, "suite", step),
                scorers,
            )
            reference = await reference_draws(
                engine,
                self.prompts,
                params,
                trainer.evaluation.reference_samples_per_prompt,
                trainer.seed,
                scorers,
                self.config.data_dir / "evaluation",
                self.sources,
            )
        except UnusablePromptsError as error:  # a suite is checked whole, or not at all
            raise ScoringError(f"the suite of trainer.gate.suite: {error}") from error
        return ours.rewards_PS, reference.rewards_PS


def read_suite(config: BondConfig, suite: SuiteConfig, scorer: Scorer) -> Suite:
    """The suite around its started scorer. Raises `ConfigError` if it has too few prompts."""
    prompts = read_prompts(suite.prompts)
    if len(prompts) < 2:
        raise ConfigError(f"trainer.gate.suite: {suite.prompts} needs at least 2 prompts")
    location = suite.function.rpartition(":")[0]
    own = [Path(location)] if location.endswith(".py") else []
    return Suite(config, prompts, scorer, [config.model.folder, *own])


def suite_scorer(suite: SuiteConfig) -> FunctionScorerConfig:
    """The scorer's settings within those of the suite."""
    return FunctionScorerConfig(function=suite.function, timeout_s=suite.timeout_s)
