"""Logging of the processes that stay."""

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOUD = ("httpx", "alembic", "transformers", "aiosqlite", "uvicorn.error")
"""Libraries whose information is not about the service."""


class CurrentStderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: while a progress bar is shown, its own
    stream, which puts lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line, and its traceback if it has one."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def log_to_stderr() -> None:
    """Ours from INFO on, libraries' from WARNING on."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=[CurrentStderrHandler()])
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
