"""What a server's flags need to know of a model: read from its folder, without torch."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bond_cli.failure import CommandError

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers")
_HEAD_KEYS = ("num_attention_heads", "n_head", "n_heads")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_IN_BLOCK = re.compile(r"(?:^|\.)\d+\..*?([A-Za-z_]\w*)\.weight$")
"""A weight inside one of the numbered blocks; the module's last name is the group. Embeddings and
the output head lie outside of them."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in Hugging Face format."""

    path: Path
    values: dict[str, Any]
    """Of `config.json`, the part for text where there are several."""

    @property
    def context_tokens(self) -> int | None:
        """The model's own limit on prompt and completion together, None if it names none."""
        return self._first(_CONTEXT_KEYS)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token over all layers, in the server's `dtype`; 0 if unknown."""
        layers, heads = self._first(_LAYER_KEYS), self._first(_HEAD_KEYS)
        width = self._first(_WIDTH_KEYS)
        if layers is None or heads is None or width is None:
            return 0
        head_dim = self._first(("head_dim",)) or width // heads
        kept = self._first(("num_key_value_heads",)) or heads
        own = str(self.values.get("dtype") or self.values.get("torch_dtype"))
        return 2 * layers * kept * head_dim * _BYTES.get(own if dtype == "auto" else dtype, 4)

    def linear_modules(self) -> list[str]:
        """Last names of the linear modules in the model's blocks, sorted, as PEFT names them.

        From the headers of the safetensors files: the matrices of the numbered blocks. Raises
        `CommandError` if the weights are in another format.
        """
        names = {
            found.group(1)
            for key, shape in self._weights().items()
            if len(shape) == 2 and (found := _IN_BLOCK.search(key))
        }
        if not names:
            raise CommandError(
                f"{self.path} has no weights in safetensors format, from which the modules of "
                "`all-linear` could be read: name them as trainer.lora.target_modules"
            )
        return sorted(names)

    def _first(self, keys: tuple[str, ...]) -> int | None:
        found = (self.values.get(key) for key in keys)
        return next((value for value in found if isinstance(value, int) and value > 0), None)

    def _weights(self) -> dict[str, list[int]]:
        shapes: dict[str, list[int]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = cast(dict[str, dict[str, Any]], json.loads(opened.read(length)))
            shapes |= {k: v["shape"] for k, v in header.items() if k != "__metadata__"}
        return shapes


def read_model_folder(path: Path) -> ModelFolder:
    """Raises `CommandError` if `path` is no model folder."""
    file = path / "config.json"
    try:
        values = cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{path} is not a model folder in Hugging Face format: cannot read its config.json "
            f"({error}); vLLM loads from a local folder here, nothing is downloaded"
        ) from None
    return ModelFolder(path, values.get("text_config") or values)
