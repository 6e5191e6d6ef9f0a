"""The memory estimate of a configuration, said before anything large is loaded.

Shapes come from the models' `config.json`, without their weights. An estimate never stops a run:
where it exceeds what is free, a warning names the settings that count most.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from bond_core.config import (
    BondConfig,
    ClassifierScorerConfig,
    GkdConfig,
    LocalEngineConfig,
)
from bond_core.errors import ModelLoadError
from bond_core.pretrained import check_folder
from bond_trainer.head import CHUNK_ELEMENTS
from bond_trainer.lora import target_modules
from bond_trainer.memory import (
    ModelShape,
    Part,
    Workload,
    peak_bytes,
    scoring_bytes,
    training_parts,
)
from bond_trainer.memory_available import available_bytes
from bond_trainer.rollouts import samples_per_prompt

logger = logging.getLogger(__name__)

_NAMED_SHARE = 0.1
"""Parts from this share of the peak on name their settings in the warning."""


_OWN_ENGINE = ("merged versions", "publishing", "sampling")
"""Parts of an engine in the trainer's process."""


def report_memory(
    config: BondConfig, given: Collection[str] = (), *, served: bool = False
) -> list[Part]:
    """Log the estimate as a table, and a warning if a device has less free than it says.

    Scorers of the roles in `given` are functions at hand and take nothing. With `served` rollouts
    the trainer has no engine of its own. Raises `ModelLoadError`
    for a folder whose configuration is not a model's.
    """
    parts = [p for p in estimate_parts(config, given) if not (served and p.name in _OWN_ENGINE)]
    logger.info("memory estimate\n%s", table(parts))
    for device in dict.fromkeys(part.device for part in parts):
        free = available_bytes(device)
        if free is not None and (text := shortage(parts, device, free)):
            logger.warning("%s", text)
    return parts


def estimate_parts(config: BondConfig, given: Collection[str] = ()) -> list[Part]:
    """Every part of a run of this configuration; see `report_memory` for what it raises."""
    device = config.learner_device
    dtype = config.model.dtype
    model = _skeleton(AutoModelForCausalLM, config.model.folder, "a causal language model")
    work = workload_of(config, _context(model, config))
    shape = shape_of(model, dtype, config.trainer.lora.target_modules)
    parts = training_parts(shape, work, device)
    objective = config.trainer.objective
    if isinstance(objective, GkdConfig) and isinstance(objective.teacher, Path):
        teacher = _skeleton(AutoModelForCausalLM, objective.teacher, "a causal language model")
        held = shape_of(teacher, dtype).num_bytes
        parts.append(Part("teacher", held, ("model.dtype",), device=device))
    for role in ("scorer", "judge", "gold"):
        scorer = getattr(config, role)
        if role not in given and isinstance(scorer, ClassifierScorerConfig):
            parts += _scorer_parts(role, scorer, work)
    return parts


def _scorer_parts(role: str, scorer: ClassifierScorerConfig, work: Workload) -> list[Part]:
    model = _skeleton(AutoModelForSequenceClassification, scorer.path, "a reward model")
    shape = shape_of(model, scorer.dtype)
    rows = min(scorer.batch_size, work.rollout_rows)
    tokens = min(scorer.max_tokens, work.prompt_tokens + work.answer_tokens)
    return [
        Part(role, shape.num_bytes, (f"{role}.dtype",), device=scorer.device),
        Part(
            f"scoring by {role}",
            scoring_bytes(shape, rows, tokens),
            (f"{role}.batch_size",),
            passing=True,
            device=scorer.device,
        ),
    ]


def workload_of(config: BondConfig, context_tokens: int) -> Workload:
    """What a configuration runs at once; `context_tokens` bounds prompt and answer together."""
    trainer, evaluation = config.trainer, config.trainer.evaluation
    room = max(1, context_tokens - config.sampling.max_tokens)
    return Workload(
        rank=trainer.lora.rank,
        freeze_a=trainer.lora.freeze_a,
        prompts_per_step=trainer.prompts_per_step,
        samples_per_prompt=sum(samples_per_prompt(trainer.objective)),
        prompt_tokens=min(trainer.max_prompt_tokens, room),
        answer_tokens=config.sampling.max_tokens,
        micro_batch_tokens=trainer.micro_batch_tokens,
        rollout_rows=trainer.rollout_rows,
        evaluation_rows=evaluation.num_prompts
        * max(evaluation.samples_per_prompt, evaluation.reference_samples_per_prompt),
        chunk_elements=CHUNK_ELEMENTS,
    )


def shape_of(
    model: PreTrainedModel, dtype: str, targets: str | list[str] | None = None
) -> ModelShape:
    """The shape of a model, with or without weights; `dtype` is the configured one."""
    config: Any = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    names = set(target_modules(model, targets)) if targets is not None else set[str]()
    own = getattr(config, "dtype", None) or torch.float32
    return ModelShape(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=(own if dtype == "auto" else getattr(torch, dtype)).itemsize,
        num_layers=int(config.num_hidden_layers),
        hidden=hidden,
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        num_heads=heads,
        num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or hidden // heads),
        vocabulary=int(config.vocab_size),
        adapted=tuple(
            _inputs_and_outputs(module)
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in names and module is not model.get_output_embeddings()
        ),
    )


def table(parts: Sequence[Part]) -> str:
    """One line for each part, and the peak; a part marked * passes (see `peak_bytes`)."""
    rows = [(f"{part.name}{' *' if part.passing else ''}", part.num_bytes) for part in parts]
    rows.append(("peak", peak_bytes(parts)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {in_units(num_bytes):>10}" for name, num_bytes in rows)


def shortage(parts: Sequence[Part], device: str, free: int) -> str | None:
    """What to say where a device has `free` bytes, None if they are enough."""
    own = [part for part in parts if part.device == device]
    needed = peak_bytes(own)
    if needed <= free:
        return None
    largest = [
        part
        for part in sorted(own, key=lambda part: -part.num_bytes)
        if part.num_bytes >= _NAMED_SHARE * needed
    ]
    settings = dict.fromkeys(name for part in largest for name in part.settings)
    return (
        f"the run may need {in_units(needed)} of memory on {device}, where {in_units(free)} are "
        f"free: most is for {', '.join(part.name for part in largest)}; lower "
        f"{', '.join(settings)} (bfloat16 for a dtype), or stop what else uses the memory"
    )


def in_units(num_bytes: int) -> str:
    """Bytes in GiB, below one GiB in MiB."""
    mib = num_bytes / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def _context(model: PreTrainedModel, config: BondConfig) -> int:
    """Tokens of prompt and answer together: the engine's bound, or the model's if smaller."""
    wanted = config.trainer.max_prompt_tokens + config.sampling.max_tokens
    if isinstance(config.engine, LocalEngineConfig):
        wanted = config.engine.max_context_tokens
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(wanted, positions or wanted)


def _inputs_and_outputs(module: nn.Module) -> tuple[int, int]:
    # torch types what a module has by name as a tensor or a module
    first, second = (int(size) for size in module.weight.shape)  # type: ignore[union-attr]
    return (second, first) if isinstance(module, nn.Linear) else (first, second)


def _skeleton(auto_class: Any, path: Path, kind: str) -> PreTrainedModel:
    """The model in a folder, with shapes and no weights."""
    check_folder(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            return auto_class.from_config(config)
    except Exception as error:  # any library error here means the same: it cannot be loaded
        raise ModelLoadError(f"{path} cannot be loaded as {kind}: {error}") from error
