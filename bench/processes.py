"""Servers under measurement: started on one core, and what they use of it."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / part for part in ("core", "server", "trainer", "clients/python", "clients/cli")]


@dataclass(frozen=True, slots=True)
class Server:
    """A running process that listens on loopback."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_s(self) -> float:
        """Processor time so far, user and system, without children."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def rss_mib(self) -> float:
        """Memory in use now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the server has ended")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def started(
    command: Sequence[str],
    port: int,
    core: int,
    *,
    ready: str = "/",
    environ: Mapping[str, str] | None = None,
    wait_s: float = 120.0,
) -> Iterator[Server]:
    """Run a command on one core until the block ends; it is ready once `ready` answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}{ready}", wait_s)
            yield Server(process, port)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def awake(cores: Sequence[int]) -> Iterator[None]:
    """Keep cores from halting until the block ends, by a process on each that runs when nothing
    else does (SCHED_IDLE).

    A virtual machine's core that halts is given to others, and comes back late and with cold
    caches: between two steps of one request that costs more than the steps do.
    """
    program = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile 1: pass"
    idlers: list[subprocess.Popen[bytes]] = []
    try:
        for core in cores:
            command = ["taskset", "-c", str(core), sys.executable, "-c", program]
            idlers.append(subprocess.Popen(command))
        yield
    finally:
        for idler in idlers:
            idler.kill()
            idler.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it answered")
        try:
            with opener.open(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@contextmanager
def gateway(
    document: Mapping[str, Any], core: int, python: str = sys.executable
) -> Iterator[Server]:
    """bondserve's gateway with this configuration; its store is in a new folder."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = {**document.get("server", {}), "port": port}
        whole = {**document, "server": server, "data_dir": f"{folder}/data"}
        file = Path(folder) / "bond.yaml"
        file.write_text(yaml.safe_dump(whole))
        environ = {"PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
        command = [python, "-m", "bond_server", str(file)]
        with started(command, port, core, ready="/healthz", environ=environ) as running:
            yield running


@dataclass(slots=True)
class Watched:
    """What a server used while it was watched."""

    cpu_share: float = 0.0
    """Of one core."""
    rss_mib_before: float = 0.0
    rss_mib_most: float = 0.0


class watching:
    """Samples a server's processor time and memory while the block runs."""

    def __init__(self, server: Server, every_s: float = 0.25) -> None:
        self._server = server
        self._every_s = every_s
        self._used = Watched()

    async def __aenter__(self) -> Watched:
        self._used.rss_mib_before = self._used.rss_mib_most = round(self._server.rss_mib(), 1)
        self._cpu_s, self._started = self._server.cpu_s(), time.perf_counter()
        self._task = asyncio.create_task(self._sample())
        return self._used

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        spent = self._server.cpu_s() - self._cpu_s
        self._used.cpu_share = round(spent / (time.perf_counter() - self._started), 3)

    async def _sample(self) -> None:
        while True:
            self._used.rss_mib_most = round(max(self._used.rss_mib_most, self._server.rss_mib()), 1)
            await asyncio.sleep(self._every_s)
