"""The output head, applied to few positions at a time.

Logits are as wide as the vocabulary: for 8,000 tokens and a vocabulary of 150,000 they would take
4.8 GB in float32, and their gradient as much again. So the decoder runs to its last hidden states,
and the head follows chunk by chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 2**24
"""Logits held at once: 64 MiB in float32."""

_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Which models' logits are their head's output and nothing more; found out once for each."""


class VocabularyHead:
    """From tokens to next-token laws, in two steps.

    Some models scale or cap what their head gives. For those `hidden` gives the logits themselves,
    whole, and the second step only takes their softmax.
    """

    def __init__(self, model: nn.Module) -> None:
        unwrap: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
        self._model: Any = model if unwrap is None else unwrap()
        if self._model not in _PLAIN:
            _PLAIN[self._model] = _is_plain(self._model)
        self._plain = _PLAIN[self._model]
        self.vocabulary_size: int = self._model.get_output_embeddings().weight.shape[0]

    def hidden(self, **inputs: Any) -> Tensor:
        """`(rows, positions, width)`; inputs as the decoder takes them."""
        if self._plain:
            return self._model.get_decoder()(**inputs).last_hidden_state
        return self._model(**inputs).logits

    def cache(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Keys and values of prompts, without any logits."""
        return self._model.get_decoder()(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=True
        ).past_key_values

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._model.parameters()).device

    def log_laws(self, hidden_MD: Tensor, temperature: float) -> Tensor:
        """Log-probabilities of the next token, `(positions, vocabulary)`, at least float32."""
        logits_MV = self._model.get_output_embeddings()(hidden_MD) if self._plain else hidden_MD
        if logits_MV.dtype not in (torch.float32, torch.float64):
            logits_MV = logits_MV.float()
        return torch.log_softmax(logits_MV / temperature, dim=-1)

    def chunks(self, num_positions: int) -> Iterator[slice]:
        """Slices of positions whose logits together stay within `CHUNK_ELEMENTS`."""
        size = max(1, CHUNK_ELEMENTS // self.vocabulary_size)
        return (slice(start, start + size) for start in range(0, num_positions, size))


def _is_plain(model: Any) -> bool:
    """Whether head(decoder(tokens)) are the model's logits, tried on two tokens."""
    ids = torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        whole = cast(Tensor, model(input_ids=ids, use_cache=False).logits)
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return torch.equal(model.get_output_embeddings()(hidden), whole)
