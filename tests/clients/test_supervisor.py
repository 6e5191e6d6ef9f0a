"""The supervisor, with small real processes as children."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bond_cli.child import Child
from bond_cli.kept import Backoff
from bond_cli.supervisor import Supervisor

FOREVER = "import time; print('up', flush=True); time.sleep(60)"
QUICK = Backoff(first_s=0.05, longest_s=0.2)


class Lines:
    """Collects what children print."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.seen.append((name, line))
        self._more.set()

    async def until(self, name: str, text: str) -> None:
        async with asyncio.timeout(60):
            while not any(n == name and text in line for n, line in self.seen):
                self._more.clear()
                await self._more.wait()


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_lines_of_both_children_are_passed_on_with_their_names() -> None:
    lines = Lines()
    supervisor = Supervisor(python(FOREVER), python(FOREVER), lines)
    await supervisor.start()
    await lines.until("gateway", "up")
    await lines.until("trainer", "up")
    gateway, trainer = supervisor.gateway_pid, supervisor.trainer_pid
    assert gateway is not None
    assert trainer is not None
    await supervisor.stop()
    assert not is_alive(gateway)
    assert not is_alive(trainer)
    assert supervisor.gateway_pid is None


async def test_the_gateways_end_ends_all_with_its_code_and_reason() -> None:
    lines = Lines()
    code = "import sys; print('loading'); print('error: no such model', file=sys.stderr); exit(7)"
    supervisor = Supervisor(python(code), python(FOREVER), lines)
    await supervisor.start()
    ended = await asyncio.wait_for(supervisor.wait(), 60)
    assert ended.exit_code == 7
    assert ended.reason == "the gateway ended: no such model"
    trainer = supervisor.trainer_pid
    assert trainer is not None
    assert is_alive(trainer)
    await supervisor.stop()
    assert not is_alive(trainer)


async def test_a_gateway_killed_by_a_signal_has_the_shells_code() -> None:
    supervisor = Supervisor(python("import os; os.kill(os.getpid(), 9)"), None, Lines())
    await supervisor.start()
    ended = await asyncio.wait_for(supervisor.wait(), 60)
    assert ended.exit_code == 128 + 9
    await supervisor.stop()


async def test_a_trainer_that_dies_is_started_again_while_the_gateway_stays(
    tmp_path: Path,
) -> None:
    lines = Lines()
    counter = tmp_path / "starts"
    code = (
        "import pathlib, sys, time\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "starts = len(path.read_text()) if path.exists() else 0\n"
        "path.write_text('x' * (starts + 1))\n"
        "print('start', starts, flush=True)\n"
        "sys.exit(1) if starts < 2 else time.sleep(60)\n"
    )
    supervisor = Supervisor(python(FOREVER), python(code, str(counter)), lines, backoff=QUICK)
    await supervisor.start()
    gateway = supervisor.gateway_pid
    await lines.until("trainer", "start 2")
    assert supervisor.restarts == 2
    assert supervisor.gateway_pid == gateway
    said = [line for name, line in lines.seen if name == "trainer" and "again" in line]
    assert said == [
        "ended with exit code 1; starting again in 0.05 s",
        "ended with exit code 1; starting again in 0.1 s",
    ]
    await supervisor.stop()


async def test_a_trainer_with_a_wrong_configuration_ends_all() -> None:
    code = "import sys; print('error: unknown key', file=sys.stderr); sys.exit(2)"
    supervisor = Supervisor(python(FOREVER), python(code), Lines(), backoff=QUICK)
    await supervisor.start()
    ended = await asyncio.wait_for(supervisor.wait(), 60)
    assert (ended.exit_code, ended.reason) == (2, "the trainer ended: unknown key")
    assert supervisor.restarts == 0
    await supervisor.stop()


async def test_a_trainer_that_has_finished_is_left_alone() -> None:
    lines = Lines()
    supervisor = Supervisor(python(FOREVER), python("print('done')"), lines, backoff=QUICK)
    await supervisor.start()
    await lines.until("trainer", "finished")
    waiting = asyncio.create_task(supervisor.wait())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert supervisor.restarts == 0
    await supervisor.stop()
    assert (await waiting).exit_code == 128 + 15


async def test_stopping_during_the_delay_does_not_wait_for_it() -> None:
    lines = Lines()
    slow = Backoff(first_s=60.0)
    supervisor = Supervisor(python(FOREVER), python("exit(1)"), lines, backoff=slow)
    await supervisor.start()
    await lines.until("trainer", "again")
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 30
    assert supervisor.restarts == 0


async def test_the_trainer_can_be_stopped_alone() -> None:
    lines = Lines()
    supervisor = Supervisor(python(FOREVER), python(FOREVER), lines, backoff=QUICK)
    await supervisor.start()
    await lines.until("trainer", "up")
    await supervisor.stop_trainer()
    await asyncio.sleep(0.2)
    assert supervisor.trainer_pid is None
    assert supervisor.restarts == 0
    gateway = supervisor.gateway_pid
    assert gateway is not None
    assert is_alive(gateway)
    await supervisor.stop()


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    lines = Lines()
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(60)"
    )
    child = Child("stubborn", python(code), lines)
    await child.start()
    await lines.until("stubborn", "up")
    assert await child.stop(grace_s=0.2) == 128 + 9
    assert ("stubborn", "did not end within 0.2 s; killed") in lines.seen


def test_a_supervised_process_ends_when_its_supervisor_is_killed() -> None:
    """A supervisor that gets SIGKILL cannot stop anyone: the child sees its input close."""
    child = (
        "import os, time; from bond_cli.lifeline import end_with_supervisor; "
        "end_with_supervisor(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = (
        "import asyncio, sys\n"
        "from bond_cli.supervisor import Supervisor\n"
        "async def main():\n"
        "    argv = (sys.executable, '-c', sys.argv[1])\n"
        "    show = lambda name, line: print(line, flush=True)\n"
        "    supervisor = Supervisor(argv, None, show)\n"
        "    await supervisor.start()\n"
        "    await supervisor.wait()\n"
        "asyncio.run(main())\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(python(parent, child), env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.kill()
    deadline = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("delay_s", "ran_s", "expected"),
    [(0, 0.1, 1.0), (1.0, 0.1, 2.0), (40.0, 0.1, 60.0), (60.0, 0.1, 60.0), (60.0, 61.0, 1.0)],
)
def test_the_delay_doubles_up_to_a_minute_and_begins_again_after_a_good_run(
    delay_s: float, ran_s: float, expected: float
) -> None:
    assert Backoff().after(delay_s, ran_s) == expected
