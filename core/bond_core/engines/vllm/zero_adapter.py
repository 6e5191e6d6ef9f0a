"""An adapter of zeros: the reference, served as an adapter."""
# pyright: reportUnknownVariableType=false

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from bond_core.errors import ModelLoadError

_PREFERRED = ("q_proj", "qkv_proj", "query_key_value", "o_proj", "gate_proj", "up_proj")
"""Linear layers that decoders have, and that adapters are made for."""


def write_zero_adapter(model: Path, path: Path) -> Path:
    """Write a LoRA of rank 1 whose delta is zero, unless it is there.

    It is made for one linear layer in each block of the model in the folder `model`, whose shapes
    are read from the weights. Raises `ModelLoadError` if none can be found there.
    """
    if (path / "adapter_config.json").is_file():
        return path
    shapes = _linear_layers(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".zero-", dir=path.parent))
    tensors: dict[str, np.ndarray] = {}
    for module, (out_features, in_features) in shapes.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = np.zeros((1, in_features), dtype=np.float32)
        tensors[f"{prefix}.lora_B.weight"] = np.zeros((out_features, 1), dtype=np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
        "inference_mode": True,
    }
    try:
        save_file(tensors, temporary / "adapter_model.safetensors")
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from a server of another user
        os.rename(temporary, path)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (path / "adapter_config.json").is_file():  # else another process was first
            raise
    return path


def _linear_layers(model: Path) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of the linear layers of one kind, from the headers of the weight files."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with cast(Any, safe_open(file, framework="np")) as weights:
            for key in weights.keys():  # noqa: SIM118 - not a mapping
                if key.endswith(".weight"):
                    shapes[key.removesuffix(".weight")] = weights.get_slice(key).get_shape()
    for wanted in _PREFERRED:
        found = {
            name: (shape[0], shape[1])
            for name, shape in shapes.items()
            if name.rpartition(".")[2] == wanted and len(shape) == 2
        }
        if found:
            return found
    raise ModelLoadError(
        f"no linear layer of a known name was found in the weights of {model}, so the reference "
        "cannot be served as an adapter: set engine.reference_as to base (not on a CPU, where vLLM "
        "mixes up base and adapter rows)"
    )
