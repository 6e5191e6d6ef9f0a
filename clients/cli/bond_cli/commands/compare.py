"""`bond compare`: one question, both arms, two columns."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bond_cli.asking import (
    DEFAULT_URL,
    ApiKey,
    BestOfAsked,
    MaxTokens,
    Question,
    Seed,
    System,
    Url,
    conversation,
    given,
)
from bond_cli.failure import explains_failures

if TYPE_CHECKING:
    from bond_client import ComparedArm, Comparison


@explains_failures
def compare(
    question: Question,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="An arm: reference, bon, distilled or distilled@vNNNN; repeat for more.",
            show_default="bon and distilled",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    system: System = None,
    best_of: BestOfAsked = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
) -> None:
    """Ask the same of both arms: text, reward, tokens and latency side by side."""
    from bond_client import Client

    with Client(url, api_key=api_key) as client:
        comparison = client.compare(
            conversation(question, system),
            arms=arm,
            **given(best_of=best_of, max_tokens=max_tokens, seed=seed),
        )
    Console().print(side_by_side(comparison))


def side_by_side(comparison: "Comparison") -> Table:
    """One column for each arm, one row for each thing to compare."""
    table = Table(show_header=True, header_style="bold", show_lines=True)
    table.add_column("", style="dim", no_wrap=True)
    for arm in comparison.arms:
        table.add_column(_heading(arm), ratio=1, overflow="fold")
    best = max((arm.score for arm in comparison.arms if arm.score is not None), default=None)
    table.add_row("answer", *(Text(arm.text) for arm in comparison.arms))
    table.add_row("reward", *(_reward(arm, best) for arm in comparison.arms))
    table.add_row("tokens", *(Text(str(arm.tokens)) for arm in comparison.arms))
    table.add_row("latency", *(Text(f"{arm.latency_ms:.0f} ms") for arm in comparison.arms))
    notes = [arm.degraded or arm.note or "" for arm in comparison.arms]
    if any(notes):
        table.add_row("note", *(Text(note, style="yellow") for note in notes))
    return table


def _heading(arm: "ComparedArm") -> Text:
    strategy = f"best of {arm.best_of}" if arm.strategy == "best_of_n" else "single sample"
    return Text(f"{arm.arm} {arm.version}\n{strategy}")


def _reward(arm: "ComparedArm", best: float | None) -> Text:
    if arm.score is None:
        return Text("not scored", style="yellow")
    return Text(f"{arm.score:.3f}", style="bold green" if arm.score == best else "")
