"""Where J-BOND comes to rest: the exact minimiser of its objective, anchor by anchor.

For a fixed anchor, J-BOND (BOND, arXiv 2407.14622, equation 19) minimises over all laws

    a * KL(q_F || pi) + b * KL(pi || q_B) + g * KL(pi || anchor)

with a = 1 - beta, b = beta, g = gamma, q_F Best-of-2 of the anchor and
q_B ~ anchor * 16^-((1 - p_le)^2), what the penalty r_J makes of it. With B = b + g and
log q = (b log q_B + g log anchor) / B, the derivative vanishes where
w + log w = log(a q_F / (B q)) + 1 + lambda / B for w = a q_F / (B pi), hence

    pi = (a / B) q_F / W0(exp(that)),   lambda by normalisation

with W0 Lambert's function (Wright's omega, as its logarithm is what is known). Used to check
training by sampling against: it has no noise, no network and no learning rate.
"""

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy import special  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bond_core.best_of_n_law import best_of_n_probabilities, reward_quantiles

FloatArray = npt.NDArray[np.float64]

_MAX_NEWTON_STEPS = 200


def penalty_target(anchor_probs: npt.ArrayLike, rewards: npt.ArrayLike) -> FloatArray:
    """q_B, the law proportional to anchor * 16^-((1 - p_le)^2)."""
    anchor = np.asarray(anchor_probs, dtype=np.float64)
    p_le = reward_quantiles(anchor, rewards).p_le
    tilted = anchor * np.exp(-math.log(16) * (1 - p_le) ** 2)
    return np.asarray(tilted / tilted.sum(), dtype=np.float64)


def minimising_law(
    forward_target: npt.ArrayLike,
    backward_target: npt.ArrayLike,
    anchor_probs: npt.ArrayLike,
    *,
    forward: float,
    backward: float,
    regulariser: float,
) -> FloatArray:
    """The law that minimises the weighted sum of the three KLs; the weights are a, b, g above.

    All laws must be positive everywhere. Raises `ValueError` if they are not, or if a weight is
    negative or all are 0.
    """
    laws = [np.asarray(p, np.float64) for p in (forward_target, backward_target, anchor_probs)]
    if not all((law > 0).all() for law in laws):
        raise ValueError("the minimising law is computed for laws that are positive everywhere")
    if min(forward, backward, regulariser) < 0 or forward + backward + regulariser == 0:
        raise ValueError("the weights are at least 0, and one of them is above")
    log_forward, log_backward, log_anchor = (np.log(law) for law in laws)
    reverse = backward + regulariser
    if reverse == 0:
        return laws[0] / laws[0].sum()
    log_target = (backward * log_backward + regulariser * log_anchor) / reverse
    if forward == 0:
        tilted = np.exp(log_target - log_target.max())
        return np.asarray(tilted / tilted.sum(), dtype=np.float64)
    log_scale = math.log(forward / reverse)
    return _lambert_law(log_scale + log_forward, log_scale + log_forward - log_target + 1)


def next_anchor(
    anchor_probs: npt.ArrayLike, rewards: npt.ArrayLike, *, beta: float, gamma: float
) -> FloatArray:
    """One round of J-BOND solved exactly, as a hard update takes it for the next anchor."""
    return minimising_law(
        best_of_n_probabilities(anchor_probs, rewards, 2),
        penalty_target(anchor_probs, rewards),
        anchor_probs,
        forward=1 - beta,
        backward=beta,
        regulariser=gamma,
    )


def _lambert_law(log_numerator: FloatArray, offset: FloatArray) -> FloatArray:
    """exp(log_numerator) / omega(offset + shift), with the shift that makes it sum to one.

    Newton's method on the logarithm of the sum, which falls and is convex in the shift: after the
    first step the iterates rise to the root.
    """
    omega = cast(Any, special.wrightomega)  # untyped
    shift = 0.0
    for _ in range(_MAX_NEWTON_STEPS):
        w = np.asarray(omega(offset + shift), dtype=np.float64)
        terms = np.exp(log_numerator - np.log(w))
        total = float(terms.sum())
        slope = -float((terms / (1 + w)).sum()) / total
        step = math.log(total) / slope
        if abs(step) < 1e-14 * (1 + abs(shift)):
            return np.asarray(terms / total, dtype=np.float64)
        shift -= step
    raise ArithmeticError(f"the law's normaliser was not found in {_MAX_NEWTON_STEPS} steps")
