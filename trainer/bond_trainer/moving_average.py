"""The anchor: an exponential moving average of the policy's parameters.

BOND (arXiv 2407.14622), equation 18: anchor <- (1 - eta) * anchor + eta * policy, after every
update. With eta = 1 the anchor is the policy of the last step, with eta = 0 it never moves.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def update_moving_average(
    anchor: Mapping[str, Tensor], policy: Mapping[str, Tensor], eta: float
) -> None:
    """Move the anchor's parameters, in place, the share `eta` of the way to the policy's.

    Anchor parameters are float32 or float64: in bfloat16 a step of 0.02 times a small update is
    rounded away. Raises `ValueError` for a narrower type, for names or shapes that differ and for
    eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is between 0 and 1, not {eta}")
    if anchor.keys() != policy.keys():
        odd = sorted(anchor.keys() ^ policy.keys())
        raise ValueError(f"anchor and policy hold different parameters: {', '.join(odd[:5])}")
    for name, average in anchor.items():
        current = policy[name]
        if average.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"anchor parameter {name} is {average.dtype}; keep it in float32")
        if average.shape != current.shape:
            raise ValueError(
                f"parameter {name} is {tuple(average.shape)} in the anchor and "
                f"{tuple(current.shape)} in the policy"
            )
        average.lerp_(current.to(average.device, average.dtype), eta)
