"""What `bond eval` prints, from what it writes to eval.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

_SHOWN = (2, 4, 8, 16, 32, 64)
_ABSENT = "–"
_MEASURES = {
    "judge": "judge_mean",
    "gold": "gold_mean",
    "KL in excess": "kl_excess_nats",
    "tokens": "tokens_per_answer",
    "cut off": "truncated_share",
    "entropy, nats a token": "entropy_per_token",
    "distinct-1": "distinct_n.1",
    "distinct-2": "distinct_n.2",
    "distinct-4": "distinct_n.4",
    "repeated 4-grams": "repeated_share",
    "same answer to others": "identical_share",
}
"""Rows of the second table and where their values stand; not every policy has them all."""


def policies_table(found: Mapping[str, Any]) -> Table:
    """Reward, KL and what they are worth: the reference, its Best-of-n, then the adapters."""
    table = _table(
        f"{found['prompts']} prompts, 95 % intervals by paired bootstrap",
        ("", "reward", "KL nats", "u", "N_q", "N_KL", "efficiency"),
    )
    shown = sorted({n for n in _SHOWN if str(n) in found["best_of_n"]} | {found["best_of"]})
    table.add_row("reference", _value(found["policies"]["reference"], "reward_mean"))
    for n in shown:
        point = found["best_of_n"][str(n)]
        table.add_row(f"Best-of-{n}", _value(point, "reward_mean"), f"≤{point['kl_nats']:.2f}")
    for name, policy in _adapters(found):
        table.add_row(
            f"[bold]{name}",
            *(
                _value(policy, key)
                for key in ("reward_mean", "kl_nats", "quantile_mean", "n_q", "n_kl")
            ),
            _interval(policy, "kl_efficiency"),
        )
    return table


def measures_table(found: Mapping[str, Any]) -> Table:
    """A column for each policy: the rewards that were not optimised, and what answers look like."""
    best_of = str(found["best_of"])
    columns = {
        "reference": found["policies"]["reference"],
        f"Best-of-{best_of}": found["best_of_n"][best_of],
        **dict(_adapters(found)),
    }
    table = _table("", ("", *columns))
    for label, key in _MEASURES.items():
        cells = [_measure(values, key) for values in columns.values()]
        if any(cell != _ABSENT for cell in cells):
            table.add_row(label, *cells)
    return table


def against_sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """One line for each adapter and what it was compared with."""
    for name, others in found["against"].items():
        for other, values in others.items():
            differences = ", ".join(
                f"{reward} {values[f'{reward}_difference']:+.3f} "
                + _interval(values, f"{reward}_difference", "{:+.3f}", value=False)
                for reward in ("reward", "judge", "gold")
                if f"{reward}_difference" in values
            )
            label = other.replace("best_of_", "Best-of-")
            yield f"{name} against {label}: {differences}; wins {values['win_rate']:.1%}"


def _measure(values: Mapping[str, Any], key: str) -> str:
    section, _, name = key.rpartition(".")
    inside = values.get(section, {}) if section else values
    return _value(inside, name) if name in inside else _ABSENT


def _adapters(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, p) for name, p in found["policies"].items() if name != "reference"]


def _table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def _value(values: Mapping[str, Any], key: str) -> str:
    """With the half width of its interval if that is about symmetric in print."""
    value, bounds = values[key], values.get(f"{key}_ci95")
    if value is None:
        return "∞"
    if bounds is None or None in bounds or key.startswith("n_"):
        return f"{value:.3g}" if key.startswith("n_") else f"{value:.3f}"
    return f"{value:.3f} ±{(bounds[1] - bounds[0]) / 2:.3f}"


def _interval(
    values: Mapping[str, Any], key: str, form: str = "{:.2f}", *, value: bool = True
) -> str:
    low, high = ("∞" if b is None else form.format(b) for b in values[f"{key}_ci95"])
    bounds = f"\\[{low}, {high}]"
    if not value:
        return bounds
    return f"{_ABSENT if values[key] is None else form.format(values[key])} {bounds}"
