"""Scored samples of the reference and of some adapters on the same prompts, with their KL."""

import asyncio
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import nn

from bond_core.adapters import MANIFEST_FILE, check_base, verify_adapter
from bond_core.config import BondConfig, LocalEngineConfig
from bond_core.engines import build_engine
from bond_core.engines.local.loading import load_policy
from bond_core.types import REFERENCE_VERSION, Message
from bond_trainer.draws import Draws, draw_scored
from bond_trainer.laws_along import LawsAlong, laws_along
from bond_trainer.opened_scorers import open_scorers
from bond_trainer.rollouts import derived_seed


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
    share their random numbers with each other; the reference has its own. Raises `AdapterError`
    for a folder that does not fit, `UnusablePromptsError`, `ScoringError` and `ModelLoadError` as
    sampling and loading do.
    """
    async with AsyncExitStack() as stack:
        engine = build_engine(config.engine, config.model)
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

        draws = await drawn(REFERENCE_VERSION, num_reference_samples, "reference")
        reference = DrawnPolicy(draws, await asyncio.to_thread(_laws, config, draws, None))
        found: dict[str, DrawnPolicy] = {}
        for name, path in adapters.items():
            await engine.load_adapter(name, path)
            draws = await drawn(name, num_samples, "policy")
            await engine.drop_adapter(name)
            found[name] = DrawnPolicy(draws, await asyncio.to_thread(_laws, config, draws, path))
        return DrawnPolicies(reference, found)


def _laws(config: BondConfig, draws: Draws, adapter: Path | None) -> LawsAlong:
    """Along the samples of an adapter, or of the reference, on a copy of the model of their own."""
    device = config.engine.device if isinstance(config.engine, LocalEngineConfig) else "cpu"
    model, _ = load_policy(config.model.path, config.model.dtype, device)
    temperature = config.sampling.temperature
    if adapter is None:
        return laws_along(lambda: nullcontext(model), None, draws.generations, temperature)
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers is renaming; nothing of ours uses it
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()

    @contextmanager
    def reference() -> Iterator[nn.Module]:
        with adapted.disable_adapter():
            yield adapted

    return laws_along(lambda: nullcontext(adapted), reference, draws.generations, temperature)
