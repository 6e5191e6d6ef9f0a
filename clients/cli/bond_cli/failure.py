"""How a command fails: one line on stderr and an exit code, never a traceback for a mistake.

Exit codes: 2 for wrong usage, a wrong flag, variable or configuration file; 1 for everything else
that a person can put right; 130 after Ctrl-C. Anything that is not foreseen here is a defect, and
keeps its traceback.
"""

import functools
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

CONFIG_EXIT = 2
FAILURE_EXIT = 1
INTERRUPT_EXIT = 130

ERROR_PREFIX = "error: "
"""Begins the line that says why; the supervisor finds a child's reason by it."""


class CommandError(Exception):
    """A command cannot do what was asked; the message says why and what to do."""

    def __init__(self, message: str, exit_code: int = FAILURE_EXIT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explains_failures(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that foreseen errors end it with their message and exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from bond_client.errors import BondClientError
        from bond_core.errors import BondError, ConfigError

        try:
            return command(*args, **kwargs)
        except CommandError as error:
            end(str(error), error.exit_code)
        except BondClientError as error:
            end(f"{error}{_about_keys(error)}", FAILURE_EXIT)
        except ConfigError as error:
            end(error.message, CONFIG_EXIT)
        except BondError as error:
            end(error.message, FAILURE_EXIT)
        except KeyboardInterrupt:
            sys.exit(INTERRUPT_EXIT)

    return wrapped


def _about_keys(error: Exception) -> str:
    """What a command can do where the gateway speaks of headers."""
    if getattr(error, "status", None) != HTTPStatus.UNAUTHORIZED:
        return ""
    return "; a command takes the key from --api-key or the variable BONDSERVE_API_KEY"


def end(message: str, exit_code: int) -> NoReturn:
    """End the process with the line that says why."""
    one_line = " ".join(message.split())
    sys.stderr.write(f"{ERROR_PREFIX}{one_line}\n")
    sys.exit(exit_code)
