"""`choose-n.png`: every reward over N, with its interval, its peak, and the recommendation."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bond_core.choosing_n import ChoiceOfN

_COLOURS = {"proxy": "#4c5a67", "judge": "#c2571a", "gold": "#1b7f4d"}


def draw_choice(choice: ChoiceOfN, path: Path) -> Figure:
    """One panel for each reward, since their units differ; returns the figure."""
    names = list(choice.means)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.6 * len(names), 3.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            colour = _COLOURS.get(name, "#10407f")
            axes.errorbar(
                choice.points, choice.means[name], yerr=choice.half_widths[name],
                color=colour, marker="o", markersize=3.5, linewidth=1.2, capsize=2,
            )  # fmt: skip
            peak = choice.peaks[name]
            axes.axvspan(*peak.interval, color=colour, alpha=0.12, linewidth=0)
            end = ", at the end" if peak.at_the_end else ""
            axes.set_title(f"{name}: highest at N = {peak.n}{end}", loc="left")
            axes.axvline(choice.recommended, color="#10407f", linestyle="--", linewidth=1)
            axes.set_xscale("log", base=2)
            axes.set_xticks([n for n in choice.points if n & (n - 1) == 0])
            axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("N")
            axes.grid(alpha=0.25, linewidth=0.6)
        panels[0].set_ylabel("mean reward of Best-of-N (95 %)")
        figure.suptitle(f"recommended: N = {choice.recommended} (dashed)", x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure
