"""`frontier.png`: reward against KL, with Best-of-N's curve and every version on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bond_core.types import PolicyState
from bond_demo.labels import Label, Mark, place_labels
from bond_demo.measures import ArmMeasures, CurvePoint
from bond_demo.report import VersionReport
from bond_demo.snapshot import PROMOTED_STATES

_CURVE_COLOUR = "#4c5a67"
_PROMOTED_COLOUR = "#1b7f4d"
_OTHER_COLOUR = "#c2571a"
_FINAL_COLOUR = "#10407f"
_FINAL_FILL = "#c9d8ee"
_MARGIN = 0.08
"""Of the data's range, for labels at its ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """What the picture shows."""

    curve: Sequence[CurvePoint]
    versions: Sequence[VersionReport]
    final: ArmMeasures | None
    """The version promoted last, on the report half; None if none was."""
    final_version: str
    gate_offset: float
    """Added to the versions' rewards: the reference's mean reward on the report half minus that
    on the gate half, where they were measured."""


def draw_frontier(frontier: Frontier, path: Path) -> Figure:
    """Draw and save the picture; returns the figure."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.5, 5.0), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _draw_curve(axes, frontier.curve)
        _draw_versions(axes, frontier)
        _draw_final(axes, frontier)
        axes.set_xlabel("KL to the reference, nats per answer")
        axes.set_ylabel("mean reward (proxy), held-out prompts")
        axes.set_title("Reward against KL: Best-of-N and the distilled versions", loc="left")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(_MARGIN)
        axes.legend(loc="best", frameon=False)
        place_labels(figure, axes, _version_labels(frontier), _marks(frontier))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _draw_curve(axes: Axes, curve: Sequence[CurvePoint]) -> None:
    axes.plot(
        [point.kl_nats for point in curve],
        [point.reward_mean for point in curve],
        color=_CURVE_COLOUR,
        marker="o",
        markersize=3.5,
        linewidth=1.2,
        label="Best-of-n of the reference (KL: log n − (n − 1)/n)",
        zorder=2,
    )
    for point in curve:
        if point.n & (point.n - 1):  # powers of two alone, else the labels overlap
            continue
        is_reference = point.n == 1
        axes.annotate(
            "reference" if is_reference else f"n = {point.n}",
            (point.kl_nats, point.reward_mean),
            textcoords="offset points",
            xytext=(8, -4) if is_reference else (-6, 6),
            ha="left" if is_reference else "right",
            color=_CURVE_COLOUR,
            fontsize=8,
        )


def _drawn(frontier: Frontier) -> list[tuple[float, float, VersionReport]]:
    """KL and shifted reward of every version that was measured."""
    return [
        (version.kl_nats, version.reward_mean + frontier.gate_offset, version)
        for version in frontier.versions
        if version.kl_nats is not None and version.reward_mean is not None
    ]


def _was_promoted(version: VersionReport) -> bool:
    return PolicyState(version.status) in PROMOTED_STATES


def _draw_versions(axes: Axes, frontier: Frontier) -> None:
    groups = (
        ("promoted versions (gate half)", True, _PROMOTED_COLOUR, "D"),
        ("other versions (gate half)", False, _OTHER_COLOUR, "x"),
    )
    for label, is_promoted, colour, marker in groups:
        points = [place for place in _drawn(frontier) if _was_promoted(place[2]) is is_promoted]
        if points:
            axes.scatter(
                [kl for kl, _, _ in points], [reward for _, reward, _ in points],
                color=colour, marker=marker, s=22, label=label, zorder=4,
            )  # fmt: skip


def _version_labels(frontier: Frontier) -> list[Label]:
    labels: list[Label] = []
    for kl, reward, version in _drawn(frontier):
        status = "" if version.status == PolicyState.RETIRED else f" {version.status}"
        colour = _PROMOTED_COLOUR if _was_promoted(version) else _OTHER_COLOUR
        labels.append(Label(f"{version.name}{status}", kl, reward, colour))
    return labels


def _marks(frontier: Frontier) -> list[Mark]:
    """Everything that labels keep clear of; radii are half the markers' sizes."""
    curve = frontier.curve
    marks = [Mark([p.kl_nats for p in curve], [p.reward_mean for p in curve], 2.0)]
    marks += [Mark([kl], [reward], 3.5) for kl, reward, _ in _drawn(frontier)]
    if frontier.final is not None:
        kl, reward = frontier.final.kl_nats, frontier.final.reward
        marks += [Mark([kl], [reward.mean], 8.0), Mark([kl, kl], list(reward.interval()), 4.0)]
    return marks


def _draw_final(axes: Axes, frontier: Frontier) -> None:
    if frontier.final is None:
        return
    low, high = frontier.final.reward.interval()
    axes.errorbar(
        [frontier.final.kl_nats],
        [frontier.final.reward.mean],
        yerr=[[frontier.final.reward.mean - low], [high - frontier.final.reward.mean]],
        color=_FINAL_COLOUR,
        marker="*",
        markersize=16,
        markerfacecolor=_FINAL_FILL,  # and below the versions: its own is seen on it
        capsize=3,
        label=f"{frontier.final_version}, final evaluation (95 %)",
        zorder=3,
    )
