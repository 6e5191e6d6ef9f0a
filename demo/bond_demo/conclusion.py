"""The end of the demo: the final evaluation, and the files that keep its result."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bond_core.config import BondConfig
from bond_core.store import Store
from bond_core.store.records import PolicyRecord
from bond_core.types import REFERENCE_VERSION, Arm
from bond_demo.measures import (
    ArmMeasures,
    FreshSamples,
    best_of_n_curve,
    measure_best_of_n,
    measure_distilled,
    measure_reference,
    verdict,
)
from bond_demo.plot import Frontier, draw_frontier
from bond_demo.report import build_report, version_reports, write_report
from bond_demo.sampling import SamplingPlan, draw_fresh_samples
from bond_demo.settings import DemoSettings
from bond_demo.snapshot import Snapshot
from bond_demo.table import evaluation_table, failure_line, traffic_table, verdict_lines
from bond_demo.worlds import report_prompts

REPORT_NAME = "report.json"
PICTURE_NAME = "frontier.png"
TABLE_NAME = "table.txt"

_TABLE_WIDTH = 110


async def conclude(
    config: BondConfig,
    settings: DemoSettings,
    store: Store,
    snapshot: Snapshot,
    out: Console,
    *,
    promotions: int,
    training_steps: int,
    seconds_to_first_answer: float | None,
    seconds_to_first_promotion: float | None,
) -> None:
    """Evaluate the version promoted last, print what was found, and write the three files.

    Gateway and trainer have ended. Without a promotion the reference stands for `distilled`, as
    it does in the service, and the output says so. `promotions` and `training_steps` are those of
    this run.
    """
    policies = await store.policies.all()
    version = await store.policies.active()
    samples = await _fresh_samples(config, settings, policies, version, out)
    best_of = config.arms.best_of
    measures = {
        Arm.REFERENCE: measure_reference(samples),
        Arm.BON: measure_best_of_n(samples, best_of),
        Arm.DISTILLED: measure_distilled(samples),
    }
    versions = version_reports(policies)
    report = build_report(
        bon_n=best_of,
        traffic=snapshot.arms,
        measures=measures,
        curve=best_of_n_curve(samples),
        versions=versions,
        promotions=promotions,
        training_steps=training_steps,
        seconds_to_first_answer=seconds_to_first_answer,
        seconds_to_first_promotion=seconds_to_first_promotion,
    )
    write_report(report, settings.results_dir / REPORT_NAME)
    _write_picture(settings, samples, policies, measures)
    _print_tables(snapshot, samples, measures, best_of, promotions, settings.results_dir, out)
    out.print(f"wrote {REPORT_NAME}, {PICTURE_NAME} and {TABLE_NAME} to {settings.results_dir}/")


async def _fresh_samples(
    config: BondConfig,
    settings: DemoSettings,
    policies: Sequence[PolicyRecord],
    version: str,
    out: Console,
) -> FreshSamples:
    path = next((policy.path for policy in policies if policy.version == version), "")
    prompts = [prompt.messages for prompt in report_prompts()][: settings.evaluation_prompts]
    plan = SamplingPlan(
        reference_samples=settings.reference_samples(config.arms.best_of),
        distilled_samples=settings.samples_per_prompt,
        limit_s=settings.evaluation_limit_s,
        seed=settings.seed,
    )
    with out.status("final evaluation ...") as status:
        samples = await draw_fresh_samples(
            config,
            version,
            Path(path) if version != REFERENCE_VERSION else None,
            prompts,
            plan,
            lambda num: status.update(f"final evaluation: {num} of {len(prompts)} prompts"),
        )
    num_prompts = samples.reference_proxy_PK.shape[0]
    if num_prompts < len(prompts):
        out.print(
            f"the final evaluation reached its limit of {plan.limit_s:.0f} s after {num_prompts} "
            f"of {len(prompts)} prompts: the intervals are wider than on a faster machine"
        )
    return samples


def _write_picture(
    settings: DemoSettings,
    samples: FreshSamples,
    policies: Sequence[PolicyRecord],
    measures: dict[Arm, ArmMeasures],
) -> None:
    every_n = range(1, settings.reference_samples_per_prompt + 1)
    is_promoted = samples.version != REFERENCE_VERSION
    frontier = Frontier(
        curve=best_of_n_curve(samples, every_n),
        versions=version_reports(policies),
        final=measures[Arm.DISTILLED] if is_promoted else None,
        final_version=samples.version,
        gate_offset=_gate_offset(measures[Arm.REFERENCE].reward.mean, policies),
    )
    draw_frontier(frontier, settings.results_dir / PICTURE_NAME)


def _gate_offset(reference_on_report: float, policies: Sequence[PolicyRecord]) -> float:
    """How much higher the reference's reward is on the report half than on the gate half."""
    for policy in policies:
        on_gate = policy.evaluation.get("reference")
        if on_gate is not None:
            return reference_on_report - float(on_gate["reward_mean"])
    return 0.0


def _print_tables(
    snapshot: Snapshot,
    samples: FreshSamples,
    measures: dict[Arm, ArmMeasures],
    best_of: int,
    promotions: int,
    results_dir: Path,
    out: Console,
) -> None:
    """To the console, and without colour to the file."""
    verdicts = [verdict(samples, n) for n in sorted({2, best_of})]
    num_prompts = samples.reference_proxy_PK.shape[0]
    parts = [
        traffic_table(snapshot),
        evaluation_table(measures, best_of, samples.version, num_prompts),
        verdict_lines(verdicts),
        failure_line(snapshot),
        _promotion_line(samples.version, promotions),
    ]
    with (results_dir / TABLE_NAME).open("w", encoding="utf-8") as file:
        plain = Console(file=file, width=_TABLE_WIDTH, color_system=None)
        for part in parts:
            plain.print(part, "")
            out.print(part, "")


def _promotion_line(version: str, promotions: int) -> Text:
    if version == REFERENCE_VERSION:
        return Text(
            "no version was promoted: `distilled` was the reference itself; give it more time "
            "(DURATION) or run again on the same data directory",
            style="bold yellow",
        )
    count = "1 version was" if promotions == 1 else f"{promotions} versions were"
    return Text(f"{count} promoted in this run; live at the end: {version}")
