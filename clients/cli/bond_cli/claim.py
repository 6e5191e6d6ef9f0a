"""One supervisor per data directory: a second must not change what the first's children read."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bond_cli.failure import CONFIG_EXIT, CommandError

LOCK_NAME = "up.lock"


@contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; the lock ends with the process.

    Raises `CommandError` if another `bond up` or `bond demo` holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"another `bond up` or `bond demo` runs on {data_dir}: stop it, or give this one "
                "another --data-dir",
                CONFIG_EXIT,
            ) from None
        yield
