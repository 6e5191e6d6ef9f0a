"""`bond policies`: the versions of a gateway or a data folder, and taking one out of it."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bond_cli.commands.policy_status import status
from bond_cli.extras import needs
from bond_cli.failure import CommandError, explains_failures
from bond_cli.target import ConfigFile, DataDir, config_of_data

app = typer.Typer(
    help="Policy versions: those of a gateway, or in a data folder.", no_args_is_help=True
)
app.command("status")(status)


@app.command("list")
@explains_failures
def list_versions(config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """List the versions on disk, newest last, without a gateway."""
    from bond_core.adapters import MANIFEST_FILE, read_manifest

    resolved = config_of_data(config, data_dir)
    folders = sorted(p.parent for p in resolved.adapters_dir.glob(f"v*/{MANIFEST_FILE}"))
    if not folders:
        raise CommandError(f"there is no version in {resolved.adapters_dir}")
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("version", "compared with", "step", "reward", "KL nats", "N_q", "base"):
        table.add_column(heading, no_wrap=True)
    for folder in folders:
        manifest = read_manifest(folder)
        found = manifest.evaluation
        table.add_row(
            manifest.version,
            manifest.parent,
            str(manifest.step),
            *(_number(found.get(key)) for key in ("reward_mean", "kl_nats", "n_q")),
            manifest.base_model,
        )
    Console().print(table)


@app.command("export")
@explains_failures
def export(
    version: Annotated[str, typer.Argument(help="Such as v0003.")],
    to: Annotated[Path, typer.Option(help="A new or empty folder.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="One model of base and adapter, instead of a LoRA.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(help="The base model's folder, if it is not where it was at training."),
    ] = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Write a version as a PEFT folder, or merged into a model, with a card."""
    from bond_core.adapters import adapter_path

    resolved = config_of_data(config, data_dir)
    base = model if model is not None else resolved.model.folder
    folder = adapter_path(resolved.adapters_dir, version)
    with needs("trainer", "policies export"):
        from bond_trainer.export import export_adapter, export_merged
    if merge:
        export_merged(folder, base, resolved.model.dtype, to)
    else:
        export_adapter(folder, base, to)
    typer.echo(f"{version} is in {to}, with a card in README.md")


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
