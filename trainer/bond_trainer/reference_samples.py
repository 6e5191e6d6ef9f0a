"""Many scored samples of the reference, for choosing N: no learner, no store."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bond_core.config import BondConfig
from bond_core.engines import build_engine
from bond_core.errors import ConfigError
from bond_core.holdout import Split, split_of
from bond_core.types import REFERENCE_VERSION, Message
from bond_trainer.draws import Draws, draw_scored
from bond_trainer.opened_scorers import open_scorers
from bond_trainer.prompt_files import read_prompts


async def sample_reference(
    config: BondConfig, prompts: Sequence[tuple[Message, ...]], num_samples: int, seed: int = 0
) -> Draws:
    """`num_samples` answers to each prompt at standard sampling, scored by every scorer.

    Raises `UnusablePromptsError`, `ScoringError` and `ModelLoadError` as sampling and loading do.
    """
    async with AsyncExitStack() as stack:
        engine = build_engine(
            config.engine, config.model, adapters_dir=config.adapters_dir, background=True
        )
        await engine.start()
        stack.push_async_callback(engine.close)
        scorers = await open_scorers(stack, config)
        params = config.sampling.params()
        return await draw_scored(
            engine, REFERENCE_VERSION, prompts, params, num_samples, seed, scorers
        )


def report_prompts(config: BondConfig, file: Path | None, limit: int) -> list[tuple[Message, ...]]:
    """The first `limit` prompts to report on: the configured ones, or the report half of a file.

    A file whose report half is empty is taken whole. Raises `ConfigError` if there are none.
    """
    if file is not None:
        found = read_prompts(file)
        return ([m for m in found if split_of(m) is Split.REPORT] or found)[:limit]
    configured = config.trainer.evaluation.report_prompts
    if configured is None:
        raise ConfigError(
            "no prompts to sample on: name a JSON-lines file with --prompts, or set "
            "trainer.evaluation.report_prompts"
        )
    return read_prompts(configured)[:limit]
