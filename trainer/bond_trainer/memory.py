"""How much memory a run will take, before it starts.

Counted exactly, from the model's shape: weights, adapters, gradients, optimiser, what the embedded
engine holds of merged versions, keys and values. Estimated: what a backward pass keeps of a
micro-batch, for a decoder with gated feed-forward layers and fused attention, within a few tens of
per cent. The interpreter and its libraries are not counted (0.6 to 1 GiB).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bond_core.config import BondConfig, ClassifierScorerConfig, LocalEngineConfig
from bond_trainer.head import CHUNK_ELEMENTS
from bond_trainer.lora import target_modules

GIB = 2**30
VERSIONS_HELD = 3
"""Merged copies of the adapted weights in the engine: policy, anchor, incumbent."""
_LOGITS_COPIES = 4
"""Of a chunk, at once: logits, their softmax, its exponential and a gradient."""
_FP32 = 4


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part, and what is free where the model will be."""

    parts: Mapping[str, int]
    available: int

    @property
    def total(self) -> int:
        """Of all parts, in bytes."""
        return sum(self.parts.values())

    @property
    def lines(self) -> list[str]:
        """For the log: the parts in GiB, the total, and a warning if that is too much."""
        found = [f"{name} {size / GIB:.2f}" for name, size in self.parts.items()]
        said = [
            f"memory, estimated in GiB: {', '.join(found)}; together {self.total / GIB:.2f} of "
            f"{self.available / GIB:.2f} available"
        ]
        if self.total > self.available:
            said.append(
                "this is more than there is: lower trainer.micro_batch_tokens (activations), "
                "trainer.rollout_rows or sampling.max_tokens (keys and values), "
                "trainer.lora.rank, or load the model in bfloat16 (model.dtype)"
            )
        return said


def estimate_memory(config: BondConfig) -> MemoryEstimate:
    """For a run with these settings. Reads the model's config.json, not its weights."""
    model = _shape_of(config.model.path)
    dtype = model.dtype if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    size = dtype.itemsize
    layers = _adapted(model, config)
    adapter = sum(config.trainer.lora.rank * (i + o) for i, o in layers) * _FP32
    trained = adapter
    if config.trainer.lora.freeze_a:
        trained = sum(config.trainer.lora.rank * o for _, o in layers) * _FP32
    text: Any = model.config.get_text_config()
    tokens = config.trainer.micro_batch_tokens
    longest = config.trainer.max_prompt_tokens + config.sampling.max_tokens
    parts = {
        "base": sum(p.numel() for p in model.parameters()) * size,
        "policy and anchor": 2 * adapter,
        "gradient and optimiser": 3 * trained,
        "merged versions": VERSIONS_HELD * sum(i * o for i, o in layers) * size,
        "keys and values": config.trainer.rollout_rows * longest * _kv_per_token(text) * size,
        "activations": tokens * _kept_per_token(text, layers, config.trainer.lora.rank) * size,
        "logits": _LOGITS_COPIES * _FP32 * min(CHUNK_ELEMENTS, tokens * text.vocab_size),
        "scorers": sum(
            _weights_on_disk(s.path)
            for s in (config.scorer, config.judge, config.gold)
            if isinstance(s, ClassifierScorerConfig)
        ),
    }
    device = config.engine.device if isinstance(config.engine, LocalEngineConfig) else "cpu"
    return MemoryEstimate(parts, available_bytes(device))


def available_bytes(device: str) -> int:
    """Free on the device; on a CPU within the container's limit, if there is one."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (said := limit.read_text().strip()) != "max":
        free = min(free, int(said) - int(used.read_text()))
    return free


def _shape_of(path: Path) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))


def _adapted(model: PreTrainedModel, config: BondConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of each adapted linear module."""
    names = set(target_modules(model, config.trainer.lora.target_modules))
    shapes = [
        cast(Tensor, module.weight).shape
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and hasattr(module, "weight")
    ]
    return [(int(shape[1]), int(shape[0])) for shape in shapes]


def _kv_per_token(text: Any) -> int:
    """Elements of keys and values of one token, all layers."""
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * groups * width * text.num_hidden_layers


def _kept_per_token(text: Any, layers: list[tuple[int, int]], rank: int) -> int:
    """Elements that the backward pass needs again: of every adapted module its input, its output
    and what A makes of it; of every layer the norms and residual sums, the rotated queries, keys
    and values beside the prompt's, and the activation of the feed-forward part. A quarter more is
    for gradients on their way and what an allocator wastes."""
    inside = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    others = text.num_hidden_layers * (10 * text.hidden_size + inside) + 2 * _kv_per_token(text)
    return (sum(i + o + rank for i, o in layers) + others) * 5 // 4


def _weights_on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
