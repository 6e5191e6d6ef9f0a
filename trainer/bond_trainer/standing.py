"""Where a policy stands beside Best-of-N of the reference, in one line.

Works on the metrics that a run reports: `eval/…` of the last evaluation, `train/…` of the last
step. Of `eval/best_of_N_reward` there is one for every N of the curve.
"""

import re
from collections.abc import Mapping
from typing import Any

_BEST_OF = re.compile(r"eval/best_of_(\d+)_reward")


def curve_metrics(curve: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The rewards of `bond_trainer.metrics.best_of_n_curve`, under the names of metrics."""
    return {f"best_of_{n}_reward": point["reward_mean"] for n, point in curve.items()}


def evaluation_standing(metrics: Mapping[str, Any]) -> str | None:
    """The version of the last evaluation: reward between which points of Best-of-N's curve, KL to
    the reference in nats, and N_q = u / (1 - u). None before the first evaluation."""
    reward = metrics.get("eval/reward_mean")
    if reward is None:
        return None
    text = f"{metrics['eval/version']}: reward {reward:.3g}"
    place = _place(reward, _curve(metrics))
    if place:
        text += f" ({place})"
    if (kl := metrics.get("eval/kl_nats")) is not None:
        text += f", KL {kl:.2f} nats"
    n_q = metrics.get("eval/n_q")
    return text + (f", N_q {n_q:.3g}" if n_q is not None else ", N_q without bound")


def curve_line(metrics: Mapping[str, Any]) -> str | None:
    """The reference's Best-of-N curve, unbiased from its samples; None before it is known."""
    curve = _curve(metrics)
    return ", ".join(f"N={n} {reward:.3g}" for n, reward in curve) if curve else None


def training_standing(metrics: Mapping[str, Any]) -> str | None:
    """The last step's mean reward of the policy, and its divergence from what holds it; None
    before the first step. An objective without reward has the divergence alone."""
    parts: list[str] = []
    if (reward := metrics.get("train/reward_policy_mean")) is not None:
        parts.append(f"reward {reward:.3g}")
    for name, label in (
        ("kl_to_anchor", "KL to the anchor"),
        ("log_ratio_mean", "log-ratio"),
        ("divergence_per_answer", "divergence from the teacher"),
    ):
        if (value := metrics.get(f"train/{name}")) is not None:
            parts.append(f"{label} {value:.3g}")
            break
    return ", ".join(parts) or None


def _curve(metrics: Mapping[str, Any]) -> list[tuple[int, float]]:
    """`(N, reward)`, N ascending."""
    found = [(_BEST_OF.fullmatch(name), value) for name, value in metrics.items()]
    return sorted((int(match[1]), float(value)) for match, value in found if match)


def _place(reward: float, curve: list[tuple[int, float]]) -> str:
    """Between which two points of the curve a reward lies, or beyond which of its ends."""
    if not curve:
        return ""
    below = [point for point in curve if point[1] <= reward]
    above = [point for point in curve if point[1] > reward]
    if not below:
        return f"below {_point(curve[0])}"
    if not above:
        return f"above {_point(curve[-1])}"
    return f"between {_point(below[-1])} and {_point(above[0])}"


def _point(point: tuple[int, float]) -> str:
    name = f"Best-of-{point[0]}" if point[0] > 1 else "the reference's"
    return f"{name} {point[1]:.3g}"
