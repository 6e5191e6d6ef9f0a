"""The teacher of a distillation: another model, or the version that is live."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from bond_core.adapters import adapter_path, check_base, verify_adapter
from bond_core.config import BondConfig, GkdConfig, LoraConfig
from bond_core.engines.local.loading import load_policy
from bond_core.engines.rendering import tokenizer_sha256
from bond_core.errors import ConfigError
from bond_core.store import Store
from bond_core.types import REFERENCE_VERSION
from bond_trainer.lora import ANCHOR, LoraPair
from bond_trainer.shared_prompts import Other


def open_teacher(
    config: BondConfig, pair: LoraPair, tokenizer: PreTrainedTokenizerBase, device: str
) -> Other | None:
    """What distillation learns from; None for other objectives.

    A live version is held in the anchor's place, which distillation has no other use for. Raises
    `ConfigError` if the teacher's tokens are not the student's, `ModelLoadError` if it is no model.
    """
    objective = config.trainer.objective
    if not isinstance(objective, GkdConfig):
        return None
    if not isinstance(objective.teacher, Path):
        return lambda: pair.using(ANCHOR)
    teacher, its_tokenizer = load_policy(objective.teacher, config.model.dtype, device)
    if tokenizer_sha256(its_tokenizer) != tokenizer_sha256(tokenizer):
        raise ConfigError(
            f"trainer.objective.teacher: the tokenizer or chat template in {objective.teacher} is "
            f"not that of {config.model.path}; token by token, only models of one tokenizer can be "
            "compared"
        )
    teacher.requires_grad_(False)

    @contextmanager
    def using() -> Iterator[nn.Module]:
        yield teacher

    return using


async def load_active_teacher(
    store: Store, pair: LoraPair, lora: LoraConfig, base_revision: str, adapters_dir: Path
) -> None:
    """Put the live version in the anchor's place.

    Raises `ConfigError` if none is live or its factors cannot be held beside the student's,
    `AdapterError` if its directory is damaged or of another base.
    """
    version = await store.policies.active()
    record = await store.policies.get(version)
    if record is None or version == REFERENCE_VERSION:
        raise ConfigError(
            "trainer.objective.teacher is 'active', but no version is live yet: train one with "
            "another objective first, or name a folder with a model"
        )
    if lora.freeze_a:
        raise ConfigError(
            "trainer.objective.teacher 'active' needs trainer.lora.freeze_a: false, since a shared "
            "A would have to be the teacher's"
        )
    path = adapter_path(adapters_dir, version)
    check_base(await asyncio.to_thread(verify_adapter, path), base_revision)
    await asyncio.to_thread(pair.load, ANCHOR, path)
