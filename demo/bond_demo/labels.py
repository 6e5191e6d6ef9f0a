"""Labels of points in a picture, placed where they cover nothing and stay inside the axes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_FONT_SIZE = 7
_DISTANCES = (6.0, 11.0, 17.0, 25.0)
"""Points from the labelled point, nearest first."""
_SIDES = (
    (1, -1, "left", "top"), (1, 1, "left", "bottom"), (-1, -1, "right", "top"),
    (-1, 1, "right", "bottom"), (0, -1, "center", "top"), (0, 1, "center", "bottom"),
)  # fmt: skip
_CURVE_STEPS = 40
_OUTSIDE_COST = 1000


@dataclass(frozen=True, slots=True)
class Label:
    """What to write at a point, in data coordinates."""

    text: str
    x: float
    y: float
    colour: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something drawn that no label may cover: a point, or a line through several."""

    xs: Sequence[float]
    ys: Sequence[float]
    radius: float
    """Of its markers or half its width, in points."""


def place_labels(
    figure: Figure, axes: Axes, labels: Sequence[Label], marks: Sequence[Mark]
) -> None:
    """Write the labels on axes of the figure.

    Each takes the nearest free place; where none is free, that which covers least. Texts and the
    legend that the axes have already are kept clear of too.
    """
    figure.draw_without_rendering()  # the layout, without which nothing has a place
    renderer = FigureCanvasAgg(figure).get_renderer()
    taken = [text.get_window_extent(renderer) for text in axes.texts]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent(renderer))
    pixels_per_point = figure.dpi / 72
    covered = [(_display(axes, mark), mark.radius * pixels_per_point) for mark in marks]

    def cost(box: Bbox) -> int:
        inside = axes.get_window_extent(renderer)
        outside = not (
            inside.x0 <= box.x0 and box.x1 <= inside.x1
            and inside.y0 <= box.y0 and box.y1 <= inside.y1
        )  # fmt: skip
        points = sum(_num_inside(box.padded(pad), points_D2) for points_D2, pad in covered)
        return outside * _OUTSIDE_COST + 10 * box.count_overlaps(taken) + points

    for label in labels:
        tried: list[tuple[int, Annotation, Bbox]] = []
        for distance in _DISTANCES:
            for side in _SIDES:
                text = _annotate(axes, label, distance, *side)
                box = text.get_window_extent(renderer)
                tried.append((cost(box), text, box))
                if tried[-1][0] == 0:
                    break
            if tried[-1][0] == 0:
                break
        _, kept, box = min(tried, key=lambda place: place[0])
        taken.append(box)
        for _, text, _ in tried:
            if text is not kept:
                text.remove()


def _annotate(
    axes: Axes, label: Label, distance: float, right: int, up: int, ha: str, va: str
) -> Annotation:
    return axes.annotate(
        label.text, (label.x, label.y), textcoords="offset points",
        xytext=(right * distance, up * distance * (0.4 if right else 1.0)),
        ha=ha, va=va, color=label.colour, fontsize=_FONT_SIZE,
    )  # fmt: skip


def _display(axes: Axes, mark: Mark) -> npt.NDArray[np.float64]:
    """The mark as dense points in pixels, `(D, 2)`."""
    steps = np.linspace(0, len(mark.xs) - 1, _CURVE_STEPS * (len(mark.xs) - 1) + 1)
    places = np.arange(len(mark.xs))
    xs, ys = np.interp(steps, places, mark.xs), np.interp(steps, places, mark.ys)
    return np.asarray(axes.transData.transform(np.column_stack([xs, ys])))


def _num_inside(box: Bbox, points_D2: npt.NDArray[np.float64]) -> int:
    above = (points_D2 >= [box.x0, box.y0]).all(axis=1)
    below = (points_D2 <= [box.x1, box.y1]).all(axis=1)
    return int((above & below).sum())
