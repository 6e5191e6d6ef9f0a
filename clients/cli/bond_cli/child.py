"""One child process: started, read line by line, stopped."""

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from bond_cli.failure import ERROR_PREFIX

OnLine = Callable[[str, str], None]
"""Takes a child's name and one line of its output."""

_LINE_LIMIT = 2**20
_KEPT_LINES = 20


class Child:
    """A process of ours, in a session of its own so that Ctrl-C reaches the supervisor alone.

    Its standard input is a pipe that nothing is written to: it closes when this process dies in
    whatever way, and a child that watches it ends then (see `lifeline`).
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        on_line: OnLine,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._argv = tuple(argv)
        self._on_line = on_line
        self._environ = dict(os.environ if environ is None else environ)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self.is_running and self._process else None

    @property
    def is_running(self) -> bool:
        """Started, and not ended yet."""
        return self._process is not None and self._process.returncode is None

    @property
    def reason(self) -> str:
        """Why it ended, as its output says: its error line, else the last line."""
        for line in reversed(self._last_lines):
            if line.startswith(ERROR_PREFIX):
                return line.removeprefix(ERROR_PREFIX)
        return self._last_lines[-1] if self._last_lines else "it printed nothing"

    async def start(self) -> None:
        """Start the process and begin to read its output."""
        self._last_lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            start_new_session=True,
            limit=_LINE_LIMIT,
        )
        self._reading = asyncio.create_task(self._read(self._process), name=f"read {self.name}")

    async def wait(self) -> int:
        """Exit code, once the process has ended and its output is read; 128 + n for signal n."""
        if self._process is None or self._reading is None:
            raise RuntimeError(f"{self.name} was never started")
        code = await self._process.wait()
        await asyncio.wait({self._reading})  # a cancelled waiter must not end the reading
        return code if code >= 0 else 128 - code

    async def stop(self, grace_s: float) -> int | None:
        """SIGTERM, and SIGKILL after `grace_s`. Returns the exit code, None if never started."""
        if self._process is None:
            return None
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
            except TimeoutError:
                self._on_line(self.name, f"did not end within {grace_s:g} s; killed")
                self._process.kill()
        return await self.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # a line over the limit; asyncio has dropped it
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._last_lines.append(line)
                self._on_line(self.name, line)


def own_command(*arguments: str) -> tuple[str, ...]:
    """The command line of one of our own subcommands, in this interpreter."""
    return (sys.executable, "-m", "bond_cli", *arguments)
