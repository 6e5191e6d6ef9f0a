"""Logging of the processes that stay."""

import logging
from collections.abc import Iterable

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOUD = ("httpx", "alembic", "transformers", "aiosqlite", "uvicorn.error")
"""Libraries whose information is not about the service."""


def log_to_stderr(handlers: Iterable[logging.Handler] | None = None) -> None:
    """Ours from INFO on, libraries' from WARNING on; `handlers` write elsewhere."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=handlers)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
