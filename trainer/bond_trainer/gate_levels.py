"""The level of each challenger's test, and how many prompts a test at that level needs.

The reward has to be shown to rise, at a level that an online rule sets over all challengers to
come: a fixed 5 % would promote one of many challengers without gain sooner or later. LOND
(Javanmard and Montanari, "On online control of false discovery rate", arXiv 1502.06197) tests the
i-th challenger at

    alpha_i = beta_i * (D + 1),    beta_i = level * 6 / (pi^2 * i^2),    sum of beta_i = level

with D the promotions before it. While no challenger has any gain, the probability of ever
promoting one is at most `level`; as true promotions accumulate, the tests grow milder and it is
the share of false promotions that stays below `level`.
"""

import math

from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # it has none


def lond_level(level: float, num_challengers_before: int, num_promotions_before: int) -> float:
    """alpha_i of the next challenger."""
    if not 0 <= num_promotions_before <= num_challengers_before:
        raise ValueError(
            f"{num_promotions_before} promotions of {num_challengers_before} challengers"
        )
    order = num_challengers_before + 1
    share = level * 6 / (math.pi * order) ** 2
    return share * (num_promotions_before + 1)


def prompts_needed(level: float, effect: float, power: float = 0.8) -> int:
    """Gate prompts with which a gain passes a test at `level` with probability `power`.

    `effect` is the gain in standard deviations of the paired difference per prompt; the normal
    approximation, which is a few prompts short of Student's t.
    """
    if effect <= 0 or not 0 < level < 1 or not 0 < power < 1:
        raise ValueError(f"effect {effect}, level {level}, power {power}")
    return math.ceil(((float(ndtri(1 - level)) + float(ndtri(power))) / effect) ** 2)
