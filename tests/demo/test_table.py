"""What people see in the terminal."""

import io
import re

from demo_results import make_samples, make_snapshot, make_traffic
from rich.console import Console

from bond_core.types import Arm
from bond_demo.measures import measure_best_of_n, measure_distilled, measure_reference, verdict
from bond_demo.table import (
    evaluation_table,
    failure_line,
    live_view,
    traffic_table,
    verdict_lines,
)


def printed(part: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, color_system=None)
    console.print(part)
    return console.export_text()


def rows(text: str) -> dict[str, list[str]]:
    """Cells of every line by its first one, which alone may hold spaces."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = re.match(r" *(\S.*?)((?: +[-–≤\[\d][\d., %\]-]*)+) *$", line)
        if cells is not None:
            found[cells[1]] = re.findall(r"\[[^]]*\]|\S+", cells[2])
    return found


def test_traffic_has_a_row_for_each_arm_and_one_for_the_live_version() -> None:
    found = rows(printed(traffic_table(make_snapshot())))
    assert found["reference"] == [
        "12", "0", "0.100", "0.500", "0.00", "50.0%", "31", "42", "90",
    ]  # fmt: skip
    assert found["Best-of-8"] == [
        "30", "2", "1.250", "0.500", "≤1.20", "≤88.9%", "250", "42", "90",
    ]  # fmt: skip
    assert found["distilled"][:5] == ["40", "0", "1.250", "0.500", "0.75"]
    assert found["v0002 (live)"][0] == "9"
    assert found["v0002 (live)"][5] == "–"


def test_a_terminal_of_80_columns_is_wide_enough() -> None:
    wide = make_traffic(requests=12345, failed=123, reward_mean=-10.25, latency_p95_ms=12345.0)
    text = printed(traffic_table(make_snapshot(arms=dict.fromkeys(Arm, wide), live=wide)))
    assert "…" not in text
    assert rows(text)["reference"][:3] == ["12345", "123", "-10.250"]


def test_what_is_not_measured_yet_is_a_dash() -> None:
    arms = {arm: make_traffic(requests=0, reward_mean=None, latency_p50_ms=None) for arm in Arm}
    found = rows(printed(traffic_table(make_snapshot(arms=arms, live=None))))
    assert found["distilled"][2] == "–"
    assert found["distilled"][7] == "–"
    assert "v0002 (live)" not in found


def test_failures_without_a_row_are_said_under_the_table_and_in_the_verdict() -> None:
    text = " ".join(printed(traffic_table(make_snapshot(unlogged_failures=2))).split())
    assert "2 of the failed requests left no row in the log: their arm is unknown" in text
    assert "left no row" not in printed(traffic_table(make_snapshot()))
    arms = {arm: make_traffic(failed=number) for number, arm in enumerate(Arm)}
    line = failure_line(make_snapshot(arms=arms, unlogged_failures=2)).plain
    assert line == "3 of 120 requests failed, 2 of them without a row in the log"
    arms = {arm: make_traffic(failed=0) for arm in Arm}
    assert failure_line(make_snapshot(arms=arms)).plain == "none of 120 requests failed"


def test_the_live_view_tells_time_version_and_training() -> None:
    text = printed(live_view(make_snapshot(), 61.7, 300.0))
    assert "bondserve demo · 62 s of 300 s" in text
    assert "live v0002 · promoted 2, rejected 1" in text
    assert "trainer training, step 120 · 9000 rows in the log" in text


def test_before_the_first_promotion_the_view_says_so() -> None:
    snapshot = make_snapshot(live=None, live_version="v0000", training_error="out of memory")
    text = printed(live_view(snapshot, 3.0, None))
    assert "3 s, Ctrl-C ends it" in text
    assert "v0000 (the reference: nothing promoted yet)" in text
    assert "trainer: out of memory" in text


def test_the_evaluation_table_has_intervals_and_the_version() -> None:
    samples = make_samples()
    arms = {
        Arm.REFERENCE: measure_reference(samples),
        Arm.BON: measure_best_of_n(samples, 8),
        Arm.DISTILLED: measure_distilled(samples),
    }
    text = printed(evaluation_table(arms, 8, "v0002", 40))
    assert "…" not in text
    assert "40 held-out prompts" in text
    found = rows(text)
    low, high = arms[Arm.BON].reward.interval()
    assert found["Best-of-8"][:3] == [
        "640", f"{arms[Arm.BON].reward.mean:.3f}", f"[{low:.3f}, {high:.3f}]",
    ]  # fmt: skip
    assert found["Best-of-8"][4:] == ["≤1.204", "0.889", "88.9%"]
    assert found["distilled v0002"][4] == "0.875"
    assert "KL: ≤ analytic bound; distilled: exact per token, on its own answers" in text
    assert "none promoted" in rows(printed(evaluation_table(arms, 8, "v0000", 40)))


def test_verdicts_are_one_line_each() -> None:
    samples = make_samples(shift=5.0)
    text = printed(verdict_lines([verdict(samples, 2), verdict(samples, 8)]))
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 3
    assert lines[1].strip().startswith("significantly above Best-of-2: reward +")
    assert "Best-of-8" in lines[2]
