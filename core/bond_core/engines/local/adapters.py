"""PEFT LoRA directories, merged into replacements for the reference's parameters."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from bond_core.engines.local.weights import SwitchableModel
from bond_core.errors import AdapterError

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")

_NOT_MERGEABLE = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the LoRA",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "lora_bias": "trained biases",
    "use_qalora": "QALoRA",
    "arrow_config": "Arrow routing",
    "monteclora_config": "MonteCLoRA",
}
"""Settings of PEFT's LoRA that change the function beyond W + scaling * B A."""


def merge_adapter(path: Path, model: SwitchableModel) -> dict[str, Tensor]:
    """Merged weights `W + scaling * B A` of a PEFT LoRA directory, computed in float32.

    Raises `AdapterError` if the directory is incomplete, not in safetensors, not plain LoRA, or
    made for another model.
    """
    config = _read_config(path)
    factors = _read_factors(path)
    _check_scaling(path / "adapter_config.json", config)
    merged: dict[str, Tensor] = {}
    for module, (down, up) in sorted(factors.items()):
        name = f"{module}.weight"
        reference = model.reference(name)
        if reference is None:
            raise AdapterError(
                f"{path} adapts {module!r}, which the base model does not have or shares with "
                "another layer: it was made for another base model"
            )
        delta = up.float() @ down.float() * _scaling(config, module, down.shape[0])
        if model.is_transposed(module):
            delta = delta.T
        if delta.shape != reference.shape:
            raise AdapterError(
                f"{path} has a change of shape {tuple(delta.shape)} for {name!r}, whose shape is "
                f"{tuple(reference.shape)}: it was made for another base model"
            )
        merged[name] = (reference.float() + delta.to(reference.device)).to(reference.dtype)
    return merged


def _read_config(path: Path) -> Mapping[str, Any]:
    """The adapter's configuration, known to be of a kind that can be merged."""
    file = path / "adapter_config.json"
    try:
        config: Any = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise AdapterError(f"{file} does not exist: {path} is no PEFT adapter directory") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{file} is no JSON object")
    settings = cast("dict[str, Any]", config)
    if settings.get("peft_type") != "LORA":
        raise AdapterError(f"{file} does not describe a LoRA adapter; only LoRA is served")
    if settings.get("bias", "none") != "none":
        raise AdapterError(
            f"{path} trains biases (bias={settings['bias']!r}); train with bias='none'"
        )
    for setting, meaning in _NOT_MERGEABLE.items():
        if settings.get(setting):
            raise AdapterError(f"{path} uses {meaning} ({setting}); only plain LoRA is served")
    return settings


def _check_scaling(file: Path, settings: Mapping[str, Any]) -> None:
    """What `_scaling` reads has to be there, and to be numbers and patterns."""
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{file}: alpha_pattern is no JSON object")
    alphas = {"lora_alpha": settings.get("lora_alpha"), **cast("dict[str, Any]", patterns)}
    for name, alpha in alphas.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise AdapterError(f"{file}: {name} is {alpha!r}, expected a number")
        try:
            re.compile(name)
        except re.error as error:
            raise AdapterError(f"{file}: alpha_pattern {name!r} is no pattern: {error}") from error


def _read_factors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Per adapted module, A `[rank, in]` and B `[out, rank]`."""
    file = path / "adapter_model.safetensors"
    # Read, not mapped: should somebody truncate a mapped file, the process would die.
    try:
        tensors = load(file.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(
            f"{file} does not exist: save the adapter in safetensors format, the only one loaded"
        ) from error
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} cannot be read, it may be half written: {error}") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise AdapterError(f"{file} has {key!r}, which is no LoRA factor of a linear layer")
        halves.setdefault(match["module"], {})[match["factor"]] = tensor
    if not halves:
        raise AdapterError(f"{file} has no LoRA factors")
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in halves.items():
        down, up = pair.get("A"), pair.get("B")
        if down is None or up is None or down.dim() != 2 or up.dim() != 2:
            raise AdapterError(f"{file} lacks one of the two matrices of {module!r}")
        if down.shape[0] != up.shape[1]:
            raise AdapterError(
                f"{file} has ranks {down.shape[0]} and {up.shape[1]} for the two matrices of "
                f"{module!r}"
            )
        factors[module] = (down, up)
    return factors


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's factor: alpha / r, or alpha / sqrt(r) with rank-stabilised scaling."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = config["lora_alpha"]
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
