"""Exporting a policy version: for PEFT, or merged into a model of its own.

Both forms carry a card, made from the version's manifest: what it was made from, how, and what was
measured of it. The adapter is copied as it is; merging adds it to the base's weights in float32.
"""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from bond_core.adapters import (
    ADAPTER_CONFIG_FILE,
    WEIGHTS_FILE,
    Manifest,
    check_base,
    verify_adapter,
)
from bond_core.engines.local.loading import load_policy
from bond_core.engines.rendering import tokenizer_sha256
from bond_core.errors import AdapterError, ConfigError
from bond_core.fingerprints import model_digest
from bond_core.pretrained import no_progress_bars
from bond_trainer.model_card import model_card

CARD_FILE = "README.md"


def export_adapter(version_dir: Path, base: Path, to: Path) -> Manifest:
    """Copy a version's adapter to `to`, with a card.

    Raises `AdapterError` for a version that is damaged or of another base, `ConfigError` if `to`
    holds anything.
    """
    manifest = _checked(version_dir, base)

    def write(folder: Path) -> None:
        for name in (ADAPTER_CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(version_dir / name, folder / name)
        (folder / CARD_FILE).write_text(model_card(manifest, merged=False), encoding="utf-8")

    _put(to, write)
    return manifest


def export_merged(version_dir: Path, base: Path, dtype: str, to: Path) -> Manifest:
    """Write base and adapter as one model, with the tokenizer and a card.

    Raises as `export_adapter`, and `ModelLoadError` if the base cannot be loaded.
    """
    manifest = _checked(version_dir, base)
    model, tokenizer = load_policy(base, dtype, "cpu")
    if tokenizer_sha256(tokenizer) != manifest.tokenizer_sha256:
        raise AdapterError(
            f"{version_dir.name} was trained with another tokenizer or chat template than {base} "
            "has now: restore the folder's tokenizer"
        )

    def write(folder: Path) -> None:
        merged = _merged(model, version_dir)
        with no_progress_bars():
            merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / CARD_FILE).write_text(model_card(manifest, merged=True), encoding="utf-8")

    _put(to, write)
    return manifest


def _merged(model: PreTrainedModel, version_dir: Path) -> PreTrainedModel:
    """PEFT's own merge, in float32 whatever the base's dtype, then rounded to it once."""
    dtype = model.dtype
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers is renaming; nothing of ours uses it
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = PeftModel.from_pretrained(model.float(), str(version_dir))
    merged = adapted.merge_and_unload()  # type: ignore[operator]  # PEFT types it as a tensor
    return cast(PreTrainedModel, cast(nn.Module, merged).to(dtype))


def _checked(version_dir: Path, base: Path) -> Manifest:
    if not version_dir.is_dir():
        known = sorted(path.name for path in version_dir.parent.glob("v*"))
        raise AdapterError(
            f"there is no version {version_dir.name} in {version_dir.parent}; "
            f"it has {', '.join(known) or 'none'}"
        )
    manifest = verify_adapter(version_dir)
    check_base(manifest, model_digest(base))
    return manifest


def _put(to: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `to`, which takes its place when it is complete."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder: name another, or clear it")
    folder = to.with_name(f".{to.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write(folder)
        if to.exists():
            to.rmdir()
        folder.rename(to)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
