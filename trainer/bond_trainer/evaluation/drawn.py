"""Scored samples of the reference and of some adapters on the same prompts, with their KL."""

import asyncio
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import nn

from bond_core.adapters import MANIFEST_FILE, check_base, verify_adapter
from bond_core.config import BondConfig
from bond_core.engines import build_engine
from bond_core.engines.local.loading import load_policy
from bond_core.types import REFERENCE_VERSION, Message
from bond_trainer.draws import Draws, UnusablePromptsError, draw_scored
from bond_trainer.laws_along import LawsAlong, laws_along
from bond_trainer.opened_scorers import open_scorers
from bond_trainer.rollouts import derived_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DrawnPolicy:
    """Samples of one policy, with KL to the reference and entropy along them."""

    draws: Draws
    laws: LawsAlong


@dataclass(frozen=True, slots=True)
class DrawnPolicies:
    """The reference and adapters by name, on the same prompts in the same order."""

    reference: DrawnPolicy
    adapters: Mapping[str, DrawnPolicy]


async def draw_policies(
    config: BondConfig,
    adapters: Mapping[str, Path],
    prompts: Sequence[tuple[Message, ...]],
    *,
    num_samples: int,
    num_reference_samples: int,
    seed: int = 0,
) -> DrawnPolicies:
    """Draw at standard sampling, score with every scorer, and measure the laws along the samples.

    `adapters` are folders of PEFT's format: versions, whose manifest is checked, or others'. They
    share their random numbers with each other; the reference has its own. A prompt that the engine
    or a scorer refuses is left out for all, with a warning. Raises `AdapterError` for a folder
    that does not fit, `UnusablePromptsError` if fewer than two prompts are left, `ScoringError`
    and `ModelLoadError` as sampling and loading do.
    """
    left = list(prompts)
    while True:
        try:
            return await _draw(config, adapters, left, num_samples, num_reference_samples, seed)
        except UnusablePromptsError as error:
            logger.warning("left out: %s", error)
            left = [messages for messages in left if messages not in error.prompts]
            if len(left) < 2:
                raise


async def _draw(
    config: BondConfig,
    adapters: Mapping[str, Path],
    prompts: Sequence[tuple[Message, ...]],
    num_samples: int,
    num_reference_samples: int,
    seed: int,
) -> DrawnPolicies:
    async with AsyncExitStack() as stack:
        engine = build_engine(
            config.engine, config.model, adapters_dir=config.adapters_dir, background=True
        )
        await engine.start()
        stack.push_async_callback(engine.close)
        for path in adapters.values():
            if (path / MANIFEST_FILE).is_file():
                check_base(verify_adapter(path), engine.info.base_revision)
        scorers = await open_scorers(stack, config)

        async def drawn(version: str, count: int, stream: str) -> Draws:
            return await draw_scored(
                engine, version, prompts, config.sampling.params(), count,
                derived_seed(seed, stream), scorers,
            )  # fmt: skip

        laws = await asyncio.to_thread(_Laws, config)
        draws = await drawn(REFERENCE_VERSION, num_reference_samples, "reference")
        reference = DrawnPolicy(draws, await asyncio.to_thread(laws.of_reference, draws))
        found: dict[str, DrawnPolicy] = {}
        for name, path in adapters.items():
            await engine.load_adapter(name, path)
            draws = await drawn(name, num_samples, "policy")
            await engine.drop_adapter(name)
            found[name] = DrawnPolicy(draws, await asyncio.to_thread(laws.of, draws, path))
        return DrawnPolicies(reference, found)


class _Laws:
    """Next-token laws along samples, on a copy of the base of their own: the engine's is busy."""

    def __init__(self, config: BondConfig) -> None:
        self._base, _ = load_policy(config.model.folder, config.model.dtype, config.learner_device)
        self._temperature = config.sampling.temperature

    def of_reference(self, draws: Draws) -> LawsAlong:
        base = self._base
        return laws_along(lambda: nullcontext(base), None, draws.generations, self._temperature)

    def of(self, draws: Draws, adapter: Path) -> LawsAlong:
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers is renaming; nothing of ours uses it
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = PeftModel.from_pretrained(self._base, str(adapter)).eval()

        @contextmanager
        def reference() -> Iterator[nn.Module]:
            with adapted.disable_adapter():
                yield adapted

        try:
            return laws_along(
                lambda: nullcontext(adapted), reference, draws.generations, self._temperature
            )
        finally:
            self._base = adapted.unload()  # type: ignore[operator]  # PEFT types it as a tensor
