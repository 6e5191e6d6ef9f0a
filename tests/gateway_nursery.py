"""A process that has imported the gateway and forks a new one for each configuration it is told.

    python gateway_nursery.py [MODULE...] < names of configuration files, one per line

Starting Python and importing everything takes seconds; a fork of what has been imported takes
none. Each gateway is a process of its own, with its own sockets, threads and connections; it says
`PID URL` on standard output when it answers.
"""

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

import aiohttp  # noqa: F401  (imported here, so that no child has to)
import asyncpg  # noqa: F401

from bond_core.config import load_config
from bond_server.app import create_app  # noqa: F401
from bond_server.serving import run


def say(url: str) -> None:
    os.write(1, f"{os.getpid()} {url}\n".encode())


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status = 1
            try:
                run(load_config(Path(line.strip())), announce=say)
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)


if __name__ == "__main__":
    main()
