"""The table that people watch: three arms, one line each, and what training does."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bond_core.types import REFERENCE_VERSION, Arm
from bond_demo.measures import ArmMeasures, Verdict
from bond_demo.snapshot import ArmTraffic, Snapshot

_ABSENT = "–"
_TRAFFIC_COLUMNS = (
    "requests", "failed", "reward", "gold", "KL", "win rate", "tokens", "p50", "p95",
)  # fmt: skip
_EVALUATION_COLUMNS = (
    "samples", "reward", "95 % interval", "gold", "KL", "quantile", "win rate",
)  # fmt: skip


def live_view(snapshot: Snapshot, elapsed_s: float, duration_s: float | None) -> Group:
    """The live display: header, arms, training."""
    return Group(
        _clock_line(elapsed_s, duration_s),
        "",
        traffic_table(snapshot),
        "",
        _training_line(snapshot),
    )


def traffic_table(snapshot: Snapshot) -> Table:
    """What users got, per arm. Best-of-N's KL and win rate are its bounds, marked ≤; of distilled,
    what answers were worth is told of promoted versions alone, for before it is the reference."""
    table = _narrow_table("traffic (KL in nats, latency in ms)", _TRAFFIC_COLUMNS)
    table.caption = "reward, gold, KL of distilled: promoted versions alone"
    names = {
        Arm.REFERENCE: "reference",
        Arm.BON: f"Best-of-{snapshot.best_of}",
        Arm.DISTILLED: "distilled",
    }
    for arm, name in names.items():
        table.add_row(name, *_traffic_cells(snapshot.arms[arm]))
    if snapshot.live is not None:
        cells = _traffic_cells(snapshot.live)
        table.add_row(f"  {snapshot.live_version} (live)", *cells, style="green")
    if snapshot.unlogged_failures:
        table.caption = Text(
            f"{snapshot.unlogged_failures} of the failed requests left no row in the log: their "
            "arm is unknown, they count under the arm with the largest share",
            style="bold red",
        )
    return table


def failure_line(snapshot: Snapshot) -> Text:
    """Whether every user got an answer."""
    requests = sum(arm.requests for arm in snapshot.arms.values())
    failed = sum(arm.failed for arm in snapshot.arms.values())
    if not failed:
        return Text(f"none of {requests} requests failed", style="green")
    text = Text(f"{failed} of {requests} requests failed", style="bold red")
    if snapshot.unlogged_failures:
        text.append(f", {snapshot.unlogged_failures} of them without a row in the log")
    return text


def evaluation_table(
    arms: dict[Arm, ArmMeasures], best_of: int, version: str, num_prompts: int
) -> Table:
    """What the final evaluation found on the report half. Best-of-N's KL is its bound, marked ≤."""
    title = f"final evaluation: {num_prompts} held-out prompts, fresh samples"
    table = _narrow_table(title, _EVALUATION_COLUMNS)
    promoted = "none promoted" if version == REFERENCE_VERSION else f"distilled {version}"
    names = {Arm.REFERENCE: "reference", Arm.BON: f"Best-of-{best_of}", Arm.DISTILLED: promoted}
    for arm, name in names.items():
        found = arms[arm]
        low, high = found.reward.interval()
        table.add_row(
            name,
            str(found.samples),
            f"{found.reward.mean:.3f}",
            f"[{low:.3f}, {high:.3f}]",
            f"{found.gold_mean:z.3f}",
            f"≤{found.kl_nats:.3f}" if arm is Arm.BON else f"{found.kl_nats:z.3f}",
            f"{found.quantile_mean:.3f}",
            f"{found.win_rate_vs_reference:.1%}",
        )
    table.caption = "KL: ≤ analytic bound; distilled: exact per token, on its own answers"
    return table


def verdict_lines(verdicts: list[Verdict]) -> Text:
    """One sentence for each n, coloured by what it says."""
    text = Text("one distilled answer against Best-of-n, paired by prompt, 95 % intervals:")
    for verdict in verdicts:
        _, high = verdict.difference.interval()
        text.append(f"\n  {verdict.sentence}", style="red" if high < 0 else "green")
    return text


def _narrow_table(title: str, numbers: Sequence[str]) -> Table:
    """A table without inner lines, so that ten columns fit into a terminal of 80: the arm, then
    numbers under these headings."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("arm", no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _clock_line(elapsed_s: float, duration_s: float | None) -> Text:
    until = ", Ctrl-C ends it" if duration_s is None else f" of {duration_s:.0f} s"
    return Text(f"bondserve demo · {elapsed_s:.0f} s{until}", style="bold")


def _training_line(snapshot: Snapshot) -> Text:
    live = snapshot.live_version
    name = f"{live} (the reference: nothing promoted yet)" if live == REFERENCE_VERSION else live
    text = Text(
        f"live {name} · promoted {snapshot.promotions}, rejected {snapshot.rejections}\n"
        f"trainer {snapshot.training_state}, step {snapshot.training_step} · "
        f"{snapshot.log_rows} rows in the log"
    )
    if snapshot.training_error:
        text.append(f"\ntrainer: {snapshot.training_error}", style="red")
    return text


def _traffic_cells(arm: ArmTraffic) -> list[str | Text]:
    failed = Text(str(arm.failed), style="bold red" if arm.failed else "")
    return [
        str(arm.requests),
        failed,
        _number(arm.reward_mean, "{:.3f}"),
        _number(arm.gold_mean, "{:.3f}"),
        _number(arm.kl_nats, "≤{:.2f}" if arm.kl_is_bound else "{:z.2f}"),
        _number(arm.win_rate, "≤{:.1%}" if arm.win_rate_is_bound else "{:.1%}"),
        _number(arm.tokens_per_answer, "{:.0f}"),
        _number(arm.latency_p50_ms, "{:.0f}"),
        _number(arm.latency_p95_ms, "{:.0f}"),
    ]


def _number(value: float | None, form: str) -> str:
    return _ABSENT if value is None else form.format(value)
