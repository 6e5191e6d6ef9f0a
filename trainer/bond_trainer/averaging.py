"""The average of several LoRA adapters, exactly: mean of the weight updates, not of the factors.

Each adapter's update is a product B A, so the mean of factors is not the mean of updates. Factors
side by side are: (1/m) sum_i B_i A_i = [B_1 … B_m] / m times [A_1; …; A_m], an adapter whose rank
is the sum of the ranks. What runs of different seeds have in common stays, and the noise that each
has of its own shrinks ("model soups", arXiv 2203.05482; for policies "WARP", arXiv 2406.16768).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bond_core.errors import AdapterError


def average_adapters(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors under PEFT's names, of adapters of equal scaling (alpha / rank) over one base.

    Load them with rank and alpha multiplied by the number of adapters if their ranks are equal.
    Raises `AdapterError` if they do not adapt the same modules.
    """
    first, *others = adapters
    for other in others:
        odd = sorted(set(first) ^ set(other))
        if odd:
            raise AdapterError(f"only adapters of the same modules average: {odd[0]} is in one")
    return {
        name: torch.cat([a[name] for a in adapters], dim=0)
        if "lora_A" in name
        else torch.cat([a[name] for a in adapters], dim=1) / len(adapters)
        for name in first
    }
