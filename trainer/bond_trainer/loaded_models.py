"""Models given in memory, as the folders that a run reads.

A run goes on after the process that began it, and its evidence names what it was made from, so a
model in memory is first written down: once for the same weights, under a name made of them.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bond_core.engines.rendering import tokenizer_sha256
from bond_core.errors import ConfigError
from bond_core.pretrained import no_progress_bars

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version")
"""What the configuration says of where and by what it was written."""
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class KeptCopy:
    """A folder in Hugging Face format, and the type of its weights."""

    path: Path
    dtype: str
    name: str
    """What the model called itself: its folder's or repository's last part."""

    def settings(self) -> dict[str, Any]:
        """The configuration's section `model`."""
        return {"path": self.path, "dtype": self.dtype, "name": self.name}


def kept_copy(model: Any, tokenizer: Any, folder: Path, role: str) -> KeptCopy:
    """A copy of model and tokenizer in `folder`, written unless it is there already.

    Raises `ConfigError` for what cannot be written and read back as it is: something else than a
    transformers model, one without its tokenizer, with adapters, quantised, or not all in memory.
    """
    _check(model, tokenizer, role)
    path = folder / f"{role}-{_digest(model, tokenizer)}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{role}-", dir=folder))
        try:
            with no_progress_bars():
                model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    called = Path(str(model.config.name_or_path or role)).name
    return KeptCopy(path, _DTYPES[model.dtype], "-".join(called.split()) or role)


def _check(model: Any, tokenizer: Any, role: str) -> None:
    # PeftModel is no PreTrainedModel; a model with adapters loaded into it is, and says so
    if hasattr(model, "peft_config"):
        raise ConfigError(
            f"the loaded {role} carries PEFT adapters: merge them (model.merge_and_unload()) or "
            "give the base model, since training puts adapters of its own on it"
        )
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"{role} is a {type(model).__name__}: give a folder, or a model that transformers has "
            "loaded"
        )
    if tokenizer is None:
        raise ConfigError(f"a loaded {role} needs its tokenizer: give `tokenizer` beside it")
    if getattr(model, "is_quantized", False) or hasattr(model.config, "quantization_config"):
        raise ConfigError(
            f"the loaded {role} is quantised: adapters are merged into plain weights; load it in "
            "bfloat16 or float32"
        )
    if model.dtype not in _DTYPES:
        raise ConfigError(
            f"the weights of the loaded {role} are {model.dtype}: use one of "
            f"{', '.join(_DTYPES.values())}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError(
            f"the loaded {role} is partly on disk (device_map): load it whole, on one device"
        )


def _digest(model: PreTrainedModel, tokenizer: Any) -> str:
    """Of every weight, the configuration and the tokenizer; where they are does not count."""
    digest = hashlib.sha256(tokenizer_sha256(tokenizer).encode())
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_OF_THE_MODEL}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()[:_DIGITS]
