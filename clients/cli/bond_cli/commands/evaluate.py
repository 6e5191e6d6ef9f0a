"""`bond eval`: fresh samples of policy versions against the reference and its Best-of-n."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bond_cli.commands.evaluation_table import (
    against_sentences,
    measures_table,
    policies_table,
)
from bond_cli.extras import needs
from bond_cli.failure import CONFIG_EXIT, CommandError, explains_failures
from bond_cli.target import (
    ConfigFile,
    DataDir,
    Judge,
    RewardModel,
    Target,
    config_of_data,
    read_target,
)

if TYPE_CHECKING:
    from bond_core.config import BondConfig

FEW_PROMPTS = 50
"""Below it percentile intervals cover less than they say (docs/evaluation.md)."""


@explains_failures
def evaluate(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ADAPTER]...",
            help="Versions such as v0003, or folders in PEFT's format; none takes the newest.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The base model's folder, without a data folder.")
    ] = None,
    reward_model: RewardModel = None,
    judge: Judge = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines of prompts; of a large file its report half is taken."),
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="At most so many prompts.", min=2)] = 128,
    samples: Annotated[int, typer.Option(help="Answers of each adapter to a prompt.", min=1)] = 4,
    reference_samples: Annotated[
        int, typer.Option(help="Answers of the reference to a prompt: the largest n.", min=2)
    ] = 16,
    best_of: Annotated[
        int | None,
        typer.Option(help="N to compare with.", show_default="the configuration's", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for eval.json and eval.png.")] = Path("eval"),
) -> None:
    """Sample, score and compare: no gateway needed, nothing is decided or stored.

    On the report half of the held-out prompts, which neither training nor the gate looks at.
    """
    target = Target(
        model=model, reward_model=reward_model, judge=judge, config=config, data_dir=data_dir
    )
    named = model is not None or reward_model is not None or judge is not None
    resolved = read_target(target) if named else config_of_data(config, data_dir)
    n = best_of or resolved.arms.best_of
    if n > reference_samples:
        raise CommandError(
            f"Best-of-{n} is estimated from at least {n} answers of the reference: "
            f"--reference-samples {n} or more, or a smaller --best-of",
            CONFIG_EXIT,
        )
    with needs("trainer", "eval"):
        from bond_trainer.evaluation import draw_policies
        from bond_trainer.evaluation import evaluate as measure
        from bond_trainer.reference_samples import report_prompts
    with needs("demo", "eval"):
        from bond_trainer.evaluation.picture import draw_evaluation

    folders = adapter_folders(resolved, adapters or [])
    asked = report_prompts(resolved, prompts, num_prompts)
    if len(asked) < 2:
        raise CommandError("an evaluation needs at least 2 prompts; name a larger file")
    counts = {"num_samples": samples, "num_reference_samples": reference_samples}
    drawn = asyncio.run(draw_policies(resolved, folders, asked, **counts, seed=seed))
    _write(_found(resolved, folders, seed, measure(drawn, n)), out, draw_evaluation)


def _found(
    config: "BondConfig", folders: Mapping[str, Path], seed: int, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What eval.json holds: what was compared and how, and what came of it."""
    return {
        "model": str(config.model.folder),
        "adapters": {name: str(path) for name, path in folders.items()},
        "sampling": config.sampling.model_dump(mode="json"),
        "seed": seed,
        **measured,
    }


def _write(
    found: Mapping[str, Any], out: Path, draw: Callable[[Mapping[str, Any], Path], object]
) -> None:
    """Write both files and show the tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, out / "eval.png")
    _show(found)
    Console().print(f"written: {out / 'eval.json'}, {out / 'eval.png'}")


def _show(found: Mapping[str, Any]) -> None:
    console = Console()
    console.print(policies_table(found))
    console.print(measures_table(found))
    for sentence in against_sentences(found):
        console.print(sentence)
    if found["prompts"] < FEW_PROMPTS:
        console.print(
            f"[yellow]{found['prompts']} prompts are few: intervals by bootstrap are too narrow "
            f"below about {FEW_PROMPTS}"
        )


def adapter_folders(config: "BondConfig", asked: list[str]) -> dict[str, Path]:
    """The folders of what was asked for by name: a version of the data folder, or a path."""
    from bond_core.adapters import MANIFEST_FILE

    versions = {p.parent.name: p.parent for p in config.adapters_dir.glob(f"v*/{MANIFEST_FILE}")}
    if not asked and not versions:
        raise CommandError(
            f"there is no version in {config.adapters_dir}: name a folder with a LoRA adapter, or "
            "the data folder of a run with --data-dir"
        )
    found: dict[str, Path] = {}
    for name in asked or [max(versions)]:
        path = versions.get(name, Path(name).expanduser())
        if not (path / "adapter_config.json").is_file():
            known = ", ".join(sorted(versions)) or "none"
            raise CommandError(
                f"{name} is neither a version in {config.adapters_dir} (it has {known}) nor a "
                "folder with adapter_config.json"
            )
        key = path.resolve().name
        if key in found or key == "reference":
            raise CommandError(f"two adapters are called {key}: rename a folder, or leave one out")
        found[key] = path
    return found
