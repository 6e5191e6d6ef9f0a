"""Logging of the processes that stay."""

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOUD = ("httpx", "alembic", "transformers", "aiosqlite", "uvicorn.error")
"""Libraries whose information is not about the service."""


def log_to_stderr() -> None:
    """Ours from INFO on, libraries' from WARNING on."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
