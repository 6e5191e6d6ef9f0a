"""Supervision of servers, with small real HTTP servers in vLLM's place, and with vLLM itself."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from bond_cli.failure import CommandError
from bond_cli.guard import environ_of, guarded
from bond_cli.kept import Backoff
from bond_cli.resolved import free_port
from bond_cli.vllm.servers import VllmServers
from bond_cli.vllm.settings import Flag, Role, ServerCommand, Variable

HEALTHY = """
import http.server, os, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *arguments):
        pass
print("pid", os.getpid(), os.environ["WHO"], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""
BROKEN = "import sys; print('loading'); print('ValueError: no such model'); sys.exit(3)"
PARENT = """
import asyncio, subprocess, sys
from bond_cli.child import Child
async def main():
    child = Child("guarded", sys.argv[1:], lambda name, line: print(line, flush=True))
    await child.start()
    await child.wait()
asyncio.run(main())
"""
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep({sleep})
"""
QUICK = Backoff(first_s=0.05, longest_s=0.2)


class Lines:
    """What the servers printed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.seen.append((name, line))
        self._more.set()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                self._more.clear()
                await self._more.wait()

    def starting_with(self, name: str, text: str) -> list[str]:
        return [line for n, line in self.seen if n == name and line.startswith(text)]


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def server(role: Role, code: str) -> ServerCommand:
    port = free_port("127.0.0.1", 0)
    return ServerCommand(
        role=role,
        host="127.0.0.1",
        port=port,
        program=(sys.executable, "-c", code),
        model=Path("m"),
        flags=(Flag((str(port),), "where"),),
        variables=(Variable("WHO", role, "who"),),
    )


def pids(lines: Lines, role: Role) -> list[int]:
    return [int(line.split()[1]) for line in lines.starting_with(f"vllm-{role}", "pid ")]


async def test_a_server_that_dies_is_started_again_and_the_other_stays() -> None:
    lines = Lines()
    commands = [server("policy", HEALTHY), server("scorer", HEALTHY)]
    servers = VllmServers(commands, lines, os.environ, QUICK)
    await servers.start()
    try:
        [policy], [scorer] = pids(lines, "policy"), pids(lines, "scorer")
        assert lines.starting_with("vllm-policy", "pid ")[0].endswith(" policy")
        assert lines.starting_with("vllm-scorer", "answers on http://127.0.0.1:")
        os.kill(policy, signal.SIGKILL)
        await lines.until(lambda: len(pids(lines, "policy")) == 2)
        assert lines.starting_with(
            "vllm-policy", "ended with exit code 137; starting again in 0.05"
        )
        assert servers.restarts == 1
        assert is_alive(scorer)
    finally:
        await servers.stop()
    assert not any(is_alive(pid) for pid in (*pids(lines, "policy"), scorer))


async def test_a_server_that_never_answers_is_not_tried_again() -> None:
    lines = Lines()
    commands = [server("policy", HEALTHY), server("scorer", BROKEN)]
    servers = VllmServers(commands, lines, os.environ, QUICK)
    with pytest.raises(CommandError, match=r"scorer ended with exit code 3 .*no such model"):
        await servers.start()
    await servers.stop()
    assert servers.restarts == 0
    assert not any(is_alive(pid) for pid in pids(lines, "policy"))


async def test_stopping_while_they_start_ends_them() -> None:
    lines = Lines()
    servers = VllmServers([server("policy", "import time; time.sleep(60)")], lines, os.environ)
    starting = asyncio.create_task(servers.start())
    await asyncio.sleep(0.3)
    starting.cancel()
    began = time.monotonic()
    await servers.stop()
    assert time.monotonic() - began < 30
    assert starting.cancelled()


def test_the_guard_ends_what_a_program_leaves_behind() -> None:
    argv = guarded((sys.executable, "-c", FAMILY.format(sleep=0)), 5)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guard:  # its input stays open, as a supervisor's does
        assert guard.stdout is not None
        left = int(guard.stdout.readline())
        assert guard.wait(30) == 0
    until_gone(left)


def test_a_guarded_program_ends_when_its_supervisor_is_killed() -> None:
    argv = guarded((sys.executable, "-c", FAMILY.format(sleep=60)), 5)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        (sys.executable, "-c", PARENT, *argv), env=environ, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.kill()
    until_gone(pid)


def test_another_interpreter_does_not_see_our_module_path() -> None:
    environ = {"PYTHONPATH": "/ours", "PYTHONHOME": "/ours", "PATH": "/bin"}
    assert environ_of("/other/python", environ) == {"PATH": "/bin"}
    assert environ_of(sys.executable, environ) == environ


def test_a_program_that_is_not_there_is_named() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        guarded(("/nowhere/python",), 1), env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot start /nowhere/python: No such file")


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_bond_vllm_run_starts_real_servers_and_brings_one_back(
    tiny_policy_path: Path, tiny_reward_path: Path, tmp_path: Path
) -> None:
    from vllm_servers import vllm_python

    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BOND_")},
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    argv = (
        sys.executable, "-m", "bond_cli", "vllm", str(tiny_policy_path),
        "--reward-model", str(tiny_reward_path), "--python", str(vllm_python()),
        "--device", "cpu", "--port", "0", "--run",
    )  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(argv, env=environ, stdout=out, stderr=out) as bond:
        try:
            url = wait_for(bond, log, "or as flags:", "--engine-url ").split()[0]
            assert health(url) == 200
            assert f"scorer: {{type: pooling, url: {url.rpartition(':')[0]}" in log.read_text()
            kill_worker(url)
            wait_for(bond, log, "vllm-policy | ended with exit code ", "starting again in ")
            deadline = time.monotonic() + 400
            while health(url) != 200:
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            assert "vllm-scorer | ended" not in log.read_text()
        finally:
            bond.send_signal(signal.SIGTERM)
            code = bond.wait(120)
    assert code == 0
    assert health(url) is None


def wait_for(bond: subprocess.Popen[bytes], log: Path, *texts: str) -> str:
    """What follows the texts, in this order, once the log has them."""
    deadline = time.monotonic() + 400
    while bond.poll() is None and time.monotonic() < deadline:
        rest = log.read_text()
        for text in texts:
            rest = rest.partition(text)[2]
        if rest:
            return rest
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])


def health(url: str) -> int | None:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return None


def kill_worker(url: str) -> None:
    """SIGKILL to the engine process of the server on the URL's port."""
    port = url.rpartition(":")[2]
    for path in Path("/proc").glob("[0-9]*"):
        try:
            argv = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"--port" in argv
            and argv[argv.index(b"--port") + 1] == port.encode()
            and (b"bond_cli.guard" not in argv)
        ):
            for child in (path / "task" / path.name / "children").read_text().split():
                name = (Path("/proc") / child / "cmdline").read_bytes()
                if b"EngineCore" in name:
                    os.kill(int(child), signal.SIGKILL)
                    return
    raise AssertionError(f"no engine process of {url}")
