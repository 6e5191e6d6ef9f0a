"""`bond policies status`: every policy version of a gateway and what the gate saw of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bond_cli.asking import DEFAULT_URL, ApiKey, Url
from bond_cli.failure import explains_failures

if TYPE_CHECKING:
    from bond_client import Policies, Policy

_ABSENT = "–"
_STATE_STYLES = {"active": "bold green", "rejected": "yellow", "rolled_back": "red"}


@explains_failures
def status(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List the versions that a running gateway knows: state, the gate's evaluation, reasons."""
    from bond_client import Client

    with Client(url, api_key=api_key) as client:
        policies = client.policies()
    console = Console()
    console.print(versions_table(policies))
    for policy in policies.versions:
        if policy.state in ("rejected", "rolled_back") and policy.reason:
            console.print(Text(f"{policy.version} {policy.state}: {policy.reason}", style="dim"))


def versions_table(policies: "Policies") -> Table:
    """One line for each version, within 80 columns: reward with the half width of its 95 %
    interval, KL to the reference, mean quantile u, effective N by quantile and by KL, win rates.

    Effective N grows like the exponential of the KL, so it is shown by three digits.
    """
    title = "policy versions on the gate half of the held-out prompts"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0
    )
    table.add_column("version", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in (
        "step", "reward (95 %)", "KL nats", "u", "N_q", "N_KL", "win ref", "win BoN",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for policy in policies.versions:
        table.add_row(*_row(policy))
    return table


def _row(policy: "Policy") -> list[str | Text]:
    found = policy.evaluation
    return [
        Text(policy.version, style="bold" if policy.active else ""),
        Text(policy.state, style=_STATE_STYLES.get(policy.state, "")),
        str(policy.step),
        _with_margin(found),
        _number(found, "kl_nats", "{:.3f}"),
        _number(found, "quantile_mean", "{:.3f}"),
        _number(found, "n_q", "{:.3g}"),
        _number(found, "n_kl", "{:.3g}"),
        _number(found, "win_rate_vs_reference", "{:.1%}"),
        _number(found, "win_rate_vs_best_of_n", "{:.1%}"),
    ]


def _number(found: Mapping[str, object], key: str, form: str) -> str:
    value = found.get(key)
    return form.format(value) if isinstance(value, int | float) else _ABSENT


def _with_margin(found: Mapping[str, object]) -> str:
    mean, interval = _number(found, "reward_mean", "{:.3f}"), found.get("reward_ci95")
    if not isinstance(interval, list):
        return mean
    low, high = cast(list[float], interval)
    return f"{mean} ±{(high - low) / 2:.3f}"
