"""SQLite serves one gateway process; this lock refuses the second."""

import fcntl
import os
from pathlib import Path

from bond_core.errors import ConfigError


class GatewayLock:
    """A file lock beside the database. The kernel lets go of it when the process ends."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}.gateway-lock")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(self._descriptor, 32).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise ConfigError(
                f"another gateway (process {owner or 'unknown'}) serves from {database}; SQLite "
                "takes one gateway. Stop it, choose another data_dir, or set store.url to a "
                'PostgreSQL database (pip install "bondserve[postgres]") to run several'
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let another gateway start. Releasing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
