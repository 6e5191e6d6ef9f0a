"""A supervised process ends with its supervisor, however that one dies."""

import os
import signal
import sys
import threading


def end_with_supervisor() -> None:
    """Send this process SIGTERM once standard input closes.

    The supervisor holds the other end of the pipe and never writes; the kernel closes it even
    when the supervisor is killed, so that no gateway keeps a port and no trainer keeps a core.
    """
    threading.Thread(target=_wait_for_end, name="supervisor", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
