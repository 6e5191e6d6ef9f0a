"""Assembly of the command: one line per subcommand."""

from typing import Annotated

import typer

from bond_cli.commands import (
    ask,
    choose_n,
    compare,
    db,
    demo,
    evaluate,
    keys,
    policies,
    serve,
    train,
    up,
    vllm,
)
from bond_cli.usage import OneLineUsage

app = typer.Typer(
    name="bond",
    cls=OneLineUsage,
    help="Serve a model by Best-of-N, distil it into one sample by BOND, and compare the two.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from bond_core import __version__

        typer.echo(f"bondserve {__version__}")
        raise typer.Exit


@app.callback()
def bond(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Serve a model by Best-of-N, distil it into one sample by BOND, and compare the two."""


app.command("up")(up.up)
app.command("serve")(serve.serve)
app.command("train")(train.train)
app.command("vllm")(vllm.vllm)
app.command("demo")(demo.demo)
app.command("ask")(ask.ask)
app.command("compare")(compare.compare)
app.command("eval")(evaluate.evaluate)
app.command("choose-n")(choose_n.choose)
app.add_typer(policies.app, name="policies")
app.add_typer(keys.app, name="keys")
app.add_typer(db.app, name="db")


def main() -> None:
    """The entry point of `bond` and `bondserve`."""
    app(prog_name="bond")
