"""What a command that stays in the foreground shares: lines of its children, and its end."""

import asyncio
import contextlib
import signal
import sys


def print_line(name: str, line: str) -> None:
    """One line of a process, with its name."""
    with contextlib.suppress(BrokenPipeError):  # the terminal went away; the service goes on
        sys.stdout.write(f"{name:>7} | {line}\n")
        sys.stdout.flush()


def stop_on_signals() -> asyncio.Event:
    """An event that Ctrl-C and SIGTERM set."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    return stopping
