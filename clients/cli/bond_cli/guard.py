"""A process around a program that is not ours, so that it too ends with its supervisor.

`python -m bond_cli.guard GRACE_S PROGRAM ARGUMENTS...` runs the program in a process group of its
own, and ends the whole group when it gets SIGTERM, when its standard input closes (the supervisor
died in whatever way), or when the program itself has ended and left processes behind.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

from bond_cli.failure import ERROR_PREFIX, FAILURE_EXIT
from bond_cli.lifeline import end_with_supervisor


def guarded(argv: Sequence[str], grace_s: float) -> tuple[str, ...]:
    """The command line that runs `argv` guarded, in this interpreter."""
    return (sys.executable, "-m", "bond_cli.guard", f"{grace_s:g}", *argv)


def environ_of(program: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program: paths of Python modules are for this interpreter alone."""
    if program == sys.executable:
        return dict(environ)
    return {k: v for k, v in environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run(argv: Sequence[str], grace_s: float) -> int:
    """Run the program until it ends; its exit code, 128 + n for signal n."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            env=environ_of(argv[0], os.environ),
            start_new_session=True,
        )
    except OSError as error:
        sys.stderr.write(f"{ERROR_PREFIX}cannot start {argv[0]}: {error.strerror or error}\n")
        return FAILURE_EXIT

    def end(number: int, frame: FrameType | None) -> None:
        process.terminate()
        threading.Thread(target=kill_after_grace, daemon=True).start()

    def kill_after_grace() -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            return
        _kill_group(process.pid)

    signal.signal(signal.SIGTERM, end)
    end_with_supervisor()
    code = process.wait()
    _kill_group(process.pid)
    return code if code >= 0 else 128 - code


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], float(sys.argv[1])))
