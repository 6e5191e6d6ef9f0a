"""Models from local folders in Hugging Face format, or a reason why not.

Nothing is ever fetched. Imports torch and transformers, so only modules that compute import it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from bond_core.errors import ModelLoadError


def check_folder(path: Path) -> None:
    """Raise `ModelLoadError` if `path` is not a folder with a model in it."""
    if not path.is_dir():
        raise ModelLoadError(
            f"the model folder {path} does not exist; give the path of a local folder in Hugging "
            "Face format (nothing is downloaded)"
        )
    if not (path / "config.json").is_file():
        raise ModelLoadError(
            f"{path} has no config.json: it is not a model folder in Hugging Face format"
        )
    patterns = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
    if not any(any(path.glob(pattern)) for pattern in patterns):
        raise ModelLoadError(
            f"{path} has no weights: expected model.safetensors beside config.json"
        )


def load_pretrained(
    auto_class: Any, path: Path, dtype: str, device: str, kind: str, **options: Any
) -> PreTrainedModel:
    """A model of `auto_class` with every weight from the folder.

    transformers fills weights that are missing with random numbers, which would be served; here
    they are an error. `kind` says in the message what was expected.
    """
    try:
        with no_progress_bars():
            module, report = auto_class.from_pretrained(
                path,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        module = module.to(device).eval().requires_grad_(False)
    except Exception as error:  # any library error here means the same: it cannot be loaded
        raise ModelLoadError(f"{path} cannot be loaded as {kind}: {error}") from error
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        architectures = getattr(AutoConfig.from_pretrained(path), "architectures", None)
        raise ModelLoadError(
            f"{path} is not {kind}: its weights lack {', '.join(missing[:3])}"
            f"{' and more' if len(missing) > 3 else ''} (its config says {architectures})"
        )
    return module


@contextmanager
def no_progress_bars() -> Generator[None]:
    """Keep transformers from drawing its own while it reads or writes weights."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
