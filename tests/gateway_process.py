"""A gateway in a process of its own, as `python -m bond_server` starts it."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

READY = "bond gateway ready on "


@contextmanager
def gateway_process(config: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The process and the first line that it printed; empty if it ended without one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bond_server", str(config)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def ready_gateway(config: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL."""
    with gateway_process(config) as (process, line):
        assert process.stderr is not None
        assert line.startswith(READY), line + process.stderr.read()
        yield process, line.removeprefix(READY)
