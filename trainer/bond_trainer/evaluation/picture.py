"""`eval.png`: quantile and rewards against the KL that was spent, beside the reference's Best-of-n.

The first panel has the frontier: the largest mean quantile that any policy of this KL can have, if
rewards have no ties and every prompt is tilted alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bond_core.tilt_frontier import best_win_rate

_REFERENCE, _POLICIES = "#4c5a67", ("#c2571a", "#10407f", "#1b7f4d", "#8a2c6b", "#7a6a00")
_TITLES = {"reward": "reward (proxy)", "judge": "judge", "gold": "gold"}


def draw_evaluation(found: Mapping[str, Any], path: Path) -> Figure:
    """Of what `evaluate` returned; returns the figure. Bars are 95 % intervals."""
    rewards = [name for name in _TITLES if f"{name}_mean" in found["best_of_n"]["1"]]
    adapters = {name: p for name, p in found["policies"].items() if name != "reference"}
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        count = 1 + len(rewards)
        figure = Figure(figsize=(3.7 * count, 3.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, count, squeeze=False)[0]
        _quantile_panel(panels[0], found, adapters)
        for axes, name in zip(panels[1:], rewards, strict=True):
            _reward_panel(axes, found, adapters, name)
        for axes in panels:
            axes.set_xlabel("KL to the reference, nats")
            axes.grid(alpha=0.25, linewidth=0.6)
        panels[0].legend(frameon=False, loc="lower right", fontsize=8)
        figure.suptitle(
            f"{found['prompts']} prompts, {found['reference_samples']} reference answers each",
            x=0.01, ha="left",
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _quantile_panel(
    axes: Axes, found: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Any]]
) -> None:
    sizes = [int(n) for n in found["best_of_n"]]
    kl_nats = [point["kl_nats"] for point in found["best_of_n"].values()]
    furthest = max([*kl_nats, *(a["kl_nats"] for a in adapters.values())])
    grid = np.linspace(0, furthest * 1.05, 200)
    axes.plot(
        grid, [best_win_rate(x) for x in grid], color="#9aa5b1", linewidth=1, label="frontier"
    )
    quantiles = [n / (n + 1) for n in sizes]
    axes.plot(kl_nats, quantiles, ".", color=_REFERENCE, markersize=4, label="Best-of-n, no ties")
    for (name, values), colour in zip(adapters.items(), _colours(adapters), strict=True):
        _point(axes, values, "quantile_mean", colour, name)
    axes.set_title("mean reference quantile u", loc="left")


def _reward_panel(
    axes: Axes,
    found: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, Any]],
    name: str,
) -> None:
    points = list(found["best_of_n"].values())
    kl_nats = [point["kl_nats"] for point in points]
    axes.plot(kl_nats, [p[f"{name}_mean"] for p in points], color=_REFERENCE, linewidth=1.2)
    bounds = np.array([point[f"{name}_mean_ci95"] for point in points])
    axes.fill_between(
        kl_nats, bounds[:, 0], bounds[:, 1], color=_REFERENCE, alpha=0.15, linewidth=0
    )
    for n in (1, 2, 4, 8, 16, 32, 64):
        if n <= len(points):
            axes.annotate(
                f"{n}", (kl_nats[n - 1], points[n - 1][f"{name}_mean"]), fontsize=7,
                color=_REFERENCE, xytext=(0, 4), textcoords="offset points", ha="right",
            )  # fmt: skip
    for (label, values), colour in zip(adapters.items(), _colours(adapters), strict=True):
        if f"{name}_mean" in values:
            _point(axes, values, f"{name}_mean", colour, label)
    axes.set_title(f"{_TITLES[name]}; line: Best-of-n", loc="left")


def _point(axes: Axes, values: Mapping[str, Any], key: str, colour: str, label: str) -> None:
    x, y = values["kl_nats"], values[key]
    (x_low, x_high), (y_low, y_high) = values["kl_nats_ci95"], values[f"{key}_ci95"]
    axes.errorbar(
        x, y, xerr=[[x - x_low], [x_high - x]], yerr=[[y - y_low], [y_high - y]],
        color=colour, marker="o", markersize=4, linewidth=1, capsize=2, linestyle="", label=label,
    )  # fmt: skip


def _colours(adapters: Mapping[str, object]) -> list[str]:
    return [_POLICIES[i % len(_POLICIES)] for i in range(len(adapters))]
