"""From a folder in Hugging Face format to a policy the engine can run, or a reason why not."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from bond_core.errors import ModelLoadError
from bond_core.pretrained import check_folder, load_pretrained
from bond_core.tokenizing import load_tokenizer

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def load_policy(path: Path, dtype: str, device: str) -> tuple[PreTrainedModel, Any]:
    """The causal language model in `path` in evaluation mode, and its tokenizer.

    Nothing is fetched: `path` must be a local folder. Raises `ModelLoadError`.
    """
    check_folder(path)
    module = load_pretrained(AutoModelForCausalLM, path, dtype, device, "a causal language model")
    return module, load_tokenizer(path)


def context_limit(model: PreTrainedModel, wanted: int) -> int:
    """Tokens that prompt and answer may have together: what is wanted, the positions the model
    was made for, and its sliding window, within which it is the same as full attention.

    Raises `ModelLoadError` for layers that keep another state than keys and values.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= _KNOWN_LAYERS:
        raise ModelLoadError(
            f"{model.config.name_or_path or 'the model'} has layers of the kinds "
            f"{sorted(kinds - _KNOWN_LAYERS)}; the local engine runs models whose layers all use "
            "attention"
        )
    limits = [wanted]
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        limits.append(positions)
    window = getattr(config, "sliding_window", None)
    uses_window = "sliding_attention" in kinds or not getattr(config, "layer_types", None)
    if window and uses_window and getattr(config, "use_sliding_window", True):
        limits.append(window)
    return min(limits)


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the generation config's, the model's, the tokenizer's."""
    found: set[int] = set()
    generation: Any = getattr(model, "generation_config", None)
    for source in (
        getattr(generation, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if isinstance(source, int):
            found.add(source)
        elif source is not None:
            found.update(source)
    return frozenset(found)
