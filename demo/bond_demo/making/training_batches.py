"""Padded batches of similar length, so that little work is spent on padding."""

from collections.abc import Iterator, Sequence
from random import Random

import torch

NO_LOSS = -100
"""The label that torch's cross-entropy leaves out."""


def batches_of_similar_length(
    lengths: Sequence[int], batch_size: int, rng: Random
) -> Iterator[list[int]]:
    """Indices in batches whose rows have nearly equal lengths; the order of batches is random."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], rng.random()))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    yield from batches


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = 1) -> torch.Tensor:
    """Rows of different lengths as one tensor (rows, longest, rounded up to a multiple).

    Rounding keeps the number of shapes small: torch prepares a kernel for each, and keeps it.
    """
    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def pad_left(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """As `pad_right`, with the padding in front."""
    longest = max(map(len, rows))
    return torch.tensor([[*[value] * (longest - len(row)), *row] for row in rows])


def one_cycle(step: int, steps: int, peak: float, warm_up: float = 0.05) -> float:
    """Learning rate: linear up to the peak, then linear down to a fiftieth of it."""
    warm = max(1, int(steps * warm_up))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * max(0.02, 1 - (step - warm) / max(1, steps - warm))
