"""`bond choose-n`: where Best-of-N stops to pay, from samples of the reference."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bond_cli.extras import needs
from bond_cli.failure import CommandError, explains_failures
from bond_cli.target import ConfigFile, Judge, Model, RewardModel, Target, read_target

if TYPE_CHECKING:
    from bond_core.choosing_n import ChoiceOfN, Peak


@explains_failures
def choose(
    model: Model = None,
    reward_model: RewardModel = None,
    judge: Judge = None,
    config: ConfigFile = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines of prompts; of a large file its report half is taken."),
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="At most so many prompts.", min=2)] = 128,
    samples: Annotated[int, typer.Option(help="Answers to each prompt.", min=8)] = 64,
    budget: Annotated[
        float | None,
        typer.Option(help="Completion tokens of one request, all candidates together.", min=1),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for choose-n.json and choose-n.png.")] = Path(
        "choose-n"
    ),
) -> None:
    """Sample the reference, find where rewards peak over N, and recommend an N.

    The reward model selects; the judge (or gold, if configured) decides, since it was not
    optimised. Estimates are unbiased up to half the samples; Gao's curve is fitted beside them.
    """
    resolved = read_target(
        Target(model=model, reward_model=reward_model, judge=judge, config=config)
    )
    with needs("trainer", "choose-n"):
        from bond_trainer.reference_samples import report_prompts, sample_reference
    with needs("demo", "choose-n"):
        from bond_trainer.choice_picture import draw_choice
    from bond_core.choosing_n import choose_n

    asked = report_prompts(resolved, prompts, num_prompts)
    if len(asked) < 2:
        raise CommandError("choosing N needs at least 2 prompts; name a larger file")
    draws = asyncio.run(sample_reference(resolved, asked, samples))
    others = {
        name: values
        for name, values in (("gold", draws.gold_PS), ("judge", draws.judge_PS))
        if values is not None
    }
    tokens = float(draws.num_tokens_PS.mean())
    try:
        choice = choose_n(draws.rewards_PS, others, tokens, budget)
    except ValueError as error:
        raise CommandError(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    facts = {"prompts": len(asked), "samples": samples, **dataclasses.asdict(choice)}
    (out / "choose-n.json").write_text(json.dumps(facts, indent=1) + "\n")
    draw_choice(choice, out / "choose-n.png")
    console = Console()
    console.print(curve_table(choice))
    for name, peak in choice.peaks.items():
        console.print(peak_sentence(name, peak))
    console.print(f"[bold]N = {choice.recommended}[/bold], {choice.reason}")
    console.print(f"written: {out / 'choose-n.json'}, {out / 'choose-n.png'}")


def curve_table(choice: "ChoiceOfN") -> Table:
    """One line for each N."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, title="Best-of-N of the reference, 95 %")
    for heading in ("N", "KL ≤ nats", "tokens", *choice.means):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, n in enumerate(choice.points):
        values = [
            f"{choice.means[name][i]:.3f} ±{choice.half_widths[name][i]:.3f}"
            for name in choice.means
        ]
        mark = " ←" if n == choice.recommended else ""
        table.add_row(f"{n}{mark}", f"{choice.kl_nats[i]:.2f}", f"{choice.tokens[i]:.0f}", *values)
    return table


def peak_sentence(name: str, peak: "Peak") -> str:
    """What is known of where a reward is highest."""
    low, high = peak.interval
    if peak.at_the_end:
        found = f"{name} is highest at {peak.n}, the largest N looked at: its peak may lie beyond"
    else:
        found = f"{name} is highest at N = {peak.n} (95 %: {low:g} to {high:g})"
    if peak.fitted_n is None:
        fitted = "Gao's curve has no peak at any N of use"
    else:
        bounds = [f"{bound:.1f}" if bound is not None else "∞" for bound in peak.fitted_interval]
        fitted = f"Gao's curve peaks at {peak.fitted_n:.1f} ({bounds[0]} to {bounds[1]})"
    warning = "; the two disagree, so the curve is not to be relied on" if peak.disagree else ""
    return f"{found}; {fitted}{warning}."
