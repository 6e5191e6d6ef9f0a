"""The picture shows the numbers that it was given."""

from pathlib import Path

import numpy as np
from demo_results import make_samples
from matplotlib.transforms import Bbox

from bond_demo.measures import best_of_n_curve, measure_distilled
from bond_demo.plot import Frontier, draw_frontier
from bond_demo.report import VersionReport


def make_version(name: str, status: str, reward: float | None, kl: float | None) -> VersionReport:
    return VersionReport(
        name=name, step=50, status=status, reward_mean=reward, kl_nats=kl, quantile_mean=None,
        n_q=None, n_kl=None,
    )  # fmt: skip


VERSIONS = [
    make_version("v0001", "retired", 0.5, 0.25),
    make_version("v0002", "rejected", 0.375, 0.5),
    make_version("v0003", "active", 1.0, 0.75),
    make_version("v0004", "challenger", None, None),
]


def test_curve_versions_and_final_point_lie_where_they_were_measured(tmp_path: Path) -> None:
    samples = make_samples()
    final = measure_distilled(samples)
    curve = best_of_n_curve(samples, range(1, 17))
    path = tmp_path / "results" / "frontier.png"
    figure = draw_frontier(
        Frontier(
            curve=curve, versions=VERSIONS, final=final, final_version="v0003", gate_offset=0.125
        ),
        path,
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    [axes] = figure.axes
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [point.kl_nats for point in curve])
    np.testing.assert_allclose(line.get_ydata(), [point.reward_mean for point in curve])
    offsets = {
        str(collection.get_label()): np.asarray(collection.get_offsets()).tolist()
        for collection in axes.collections
    }
    assert offsets["promoted versions (gate half)"] == [[0.25, 0.625], [0.75, 1.125]]
    assert offsets["other versions (gate half)"] == [[0.5, 0.5]]
    star = axes.containers[0].lines[0]  # type: ignore[attr-defined]
    assert star.get_xdata()[0] == final.kl_nats
    assert star.get_ydata()[0] == final.reward.mean
    labels = [text.get_text() for text in axes.texts]
    assert {"reference", "n = 8", "v0001", "v0002 rejected", "v0003 active"} <= set(labels)


def test_labels_cover_nothing_and_stay_inside(tmp_path: Path) -> None:
    samples = make_samples()
    final = measure_distilled(samples)
    kl, reward = final.kl_nats, final.reward.mean
    versions = [
        make_version("v0001", "active", reward, kl),  # below its own final evaluation
        make_version("v0002", "rejected", reward - 0.05, kl + 0.1),  # where a label would be
        make_version("v0003", "rejected", reward, 2.0),  # at the right edge
        make_version("v0004", "retired", -0.1, 1.9),
    ]
    figure = draw_frontier(
        Frontier(
            curve=best_of_n_curve(samples, range(1, 17)), versions=versions, final=final,
            final_version="v0001", gate_offset=0.0,
        ),
        tmp_path / "frontier.png",
    )  # fmt: skip
    [axes] = figure.axes
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"v0001 active", "v0002 rejected", "v0003 rejected", "v0004"} <= set(boxes)
    legend = axes.get_legend()
    assert legend is not None
    low, high = final.reward.interval()
    drawn = [(v.kl_nats, v.reward_mean) for v in versions] + [(kl, low), (kl, high)]
    points = axes.transData.transform(drawn)
    star = Bbox.from_bounds(*axes.transData.transform((kl, reward)), 0, 0).padded(12)
    for name, box in boxes.items():
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1, name
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1, name
        others = [other for text, other in boxes.items() if text != name]
        assert box.count_overlaps([*others, legend.get_window_extent(), star]) == 0, name
        assert not any(box.contains(*point) for point in points), name
    by_label = {artist.get_label(): artist for artist in axes.collections}
    star_line = axes.containers[0].lines[0]  # type: ignore[attr-defined]
    assert by_label["promoted versions (gate half)"].get_zorder() > star_line.get_zorder()


def test_without_a_promotion_there_is_no_final_point(tmp_path: Path) -> None:
    frontier = Frontier(
        curve=best_of_n_curve(make_samples(), range(1, 17)),
        versions=[],
        final=None,
        final_version="v0000",
        gate_offset=0.0,
    )
    figure = draw_frontier(frontier, tmp_path / "frontier.png")
    assert figure.axes[0].containers == []
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
