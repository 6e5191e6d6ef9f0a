"""Which optional part of the distribution a command needs, and how to install it."""

from collections.abc import Iterator
from contextlib import contextmanager

from bond_cli.failure import CommandError


@contextmanager
def needs(extra: str, command: str) -> Iterator[None]:
    """Answer a module that is missing inside the block with the command that installs it.

    `extra` is the distribution's extra, or several, comma separated. Wrap imports only: a module
    that is missing later is a defect and should keep its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"`bond {command}` needs the Python package {error.name!r}, which is not installed; "
            f"install it with: pip install 'bondserve[{extra}]'"
        ) from error
