"""Wrong usage (no such command, no such option, a missing argument) in one line."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from bond_cli.failure import FAILURE_EXIT, end

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
_ParserError: type[Exception] = _UsageError.__bases__[0]
"""click's `ClickException`, or that of the copy of click that newer releases of typer carry."""


class OneLineUsage(TyperGroup):
    """The root of the commands: what its parser refuses ends as every other mistake does.

    typer would print the usage and a box, over five lines or more.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse and run, and end the process if `standalone_mode`."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            if not standalone_mode:
                raise
            end("aborted", FAILURE_EXIT)
        except _ParserError as error:
            if not standalone_mode:
                raise
            _end_with(error)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _end_with(error: Any) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        if message := error.format_message():  # empty where typer has printed it already
            typer.echo(message)
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bond"
    message = error.format_message().rstrip(".")
    separator = "" if message.endswith("?") else ";"
    end(f"{message}{separator} see `{command} --help`", error.exit_code)
