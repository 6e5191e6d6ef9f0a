"""Opening the configured scorers."""

from collections.abc import Mapping
from contextlib import AsyncExitStack

from bond_core.config import BondConfig, ScorerConfig
from bond_core.rewards import Scorer, build_scorer
from bond_trainer.draws import Scorers


async def open_scorers(
    stack: AsyncExitStack, config: BondConfig, given: Mapping[str, Scorer] | None = None
) -> Scorers:
    """Scorer, judge and gold, closed by `stack`; `given` are some at hand, by role."""
    at_hand = given or {}
    return Scorers(
        await open_scorer(stack, config.scorer, at_hand.get("scorer")),
        await open_scorer(stack, config.judge, at_hand.get("judge")) if config.judge else None,
        await open_scorer(stack, config.gold) if config.gold else None,
    )


async def open_scorer(
    stack: AsyncExitStack, config: ScorerConfig, given: Scorer | None = None
) -> Scorer:
    """One of them. Raises `ModelLoadError` or `ConfigError` if it cannot be used."""
    scorer = given or build_scorer(config)
    await scorer.start()
    stack.push_async_callback(scorer.close)
    return scorer
