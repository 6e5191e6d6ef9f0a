"""Does the engine compute what the model computes, and how exactly?

Run once at start. The engine hands models masks, positions and caches of its own; a model that
reads them otherwise (relative position biases built from a 2-D mask, say) must be refused, not
served wrong.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import torch
from torch import Tensor

from bond_core.engines.local.forward import Forward
from bond_core.engines.local.kv_cache import PrefixCache, SlotCache
from bond_core.engines.local.weights import PolicyWeights
from bond_core.errors import ModelLoadError
from bond_core.types import REFERENCE_VERSION

_FLOOR_NATS = 1e-4
"""Least noise reported: a few sequences cannot show the largest difference there is."""
_TOKENS = 24


def measure_noise(forward: Forward, max_context_tokens: int) -> float:
    """Largest difference (nats per sequence) between log-probabilities by a plain forward pass of
    one sequence and by the engine's padded, batched and cached passes.

    Raises `ModelLoadError` if they differ by more than rounding explains.
    """
    model = forward.model
    forward.use(PolicyWeights(REFERENCE_VERSION, {}))
    length = max(4, min(_TOKENS, max_context_tokens))
    sequences = _sequences(model.vocab_size, length)
    name = f"{model.module.config.name_or_path or 'the model'} ({type(model.module).__name__})"
    try:
        with torch.inference_mode():
            plain = [_plain(forward, sequence) for sequence in sequences]
            batched = _scored(forward, sequences)
            decoded = _decoded(forward, sequences)
    except Exception as error:  # whatever an unknown architecture raises means the same
        raise ModelLoadError(
            f"{name} does not run with the local engine's attention masks and cache ({error!r}): "
            "this architecture is not supported by the local engine"
        ) from error
    seen = max(
        abs(float(p - other))
        for others in (batched, decoded)
        for p, other in zip(plain, others, strict=True)
    )
    rounding = 0.02 if model.dtype == torch.float32 else 2.0
    if not seen <= rounding:
        raise ModelLoadError(
            f"{name} gives other log-probabilities with the local engine's cache than alone, by "
            f"{seen:.3g} nats: this architecture is not supported by the local engine"
        )
    return max(seen, _FLOOR_NATS)


def _sequences(vocab_size: int, length: int) -> list[list[int]]:
    """Sequences of unequal lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = [length, max(3, length // 2), max(3, length - 1), 3]
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


def _plain(forward: Forward, sequence: list[int]) -> Tensor:
    """Log-probability of all tokens but the first, by the model's ordinary forward pass."""
    tokens = torch.tensor([sequence], device=forward.model.device)
    return _summed(forward.model.module(tokens).logits[:, :-1], tokens[:, 1:])[0]


def _scored(forward: Forward, sequences: list[list[int]]) -> list[Tensor]:
    """The same by one padded pass over all."""
    sums: list[Tensor] = []
    for sequence in sequences:
        padded = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.long)
        for row, other in enumerate(sequences):
            padded[row, : len(other)] = torch.tensor(other)
        row = sequences.index(sequence)
        tokens = padded.to(forward.model.device)
        logits = forward.extend(PrefixCache(), tokens)
        until = len(sequence)
        sums.append(_summed(logits[row : row + 1, : until - 1], tokens[row : row + 1, 1:until])[0])
    return sums


def _decoded(forward: Forward, sequences: list[list[int]]) -> list[Tensor]:
    """The same by a batched prefill of two tokens less than each has, and two cached steps."""
    device = forward.model.device
    heads = [sequence[:-2] for sequence in sequences]
    logits, cache = forward.prefill(heads)
    slots = SlotCache(cache.row(0, 1))
    slots.reserve(len(heads), max(map(len, heads)) + 2)
    for slot, head in enumerate(heads):
        slots.write(cache.row(slot, len(head)), slot, 1)
    tail = [
        torch.tensor([[sequence[i]] for sequence in sequences], device=device) for i in (-2, -1)
    ]
    total = _summed(logits[:, None], tail[0])
    positions = torch.tensor([len(head) for head in heads], device=device)
    index = torch.arange(len(heads), device=device)
    columns = int(positions.max()) + 1
    slots.aim(index, positions, columns)
    logits = forward.decode(slots, tail[0][:, 0], positions, columns)
    total += _summed(logits[:, None], tail[1])
    for row, head in enumerate(heads):
        if len(head) > 1:
            tokens = torch.tensor([head], device=device)
            total[row] += _summed(forward.model.module(tokens).logits[:, :-1], tokens[:, 1:])[0]
    return list(total)


def _summed(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    logprobs = torch.log_softmax(logits_BTV.float(), dim=-1)
    return logprobs.gather(2, targets_BT[:, :, None]).sum(dim=(1, 2))
