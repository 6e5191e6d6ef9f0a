"""Our images, as they are when they run: what is in them, as whom they run, and how they end."""

import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from docker_engine import docker, free_port, image, inspect, until

pytestmark = pytest.mark.docker

OURS = ("gateway", "trainer", "demo")
SLOW = Path(__file__).parent / "slow_gateway"
CONFINED = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges:true",
)  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_images_are_labelled_and_run_as_nobody_of_note(name: str) -> None:
    config = inspect(image(name))["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["bond"]  # no shell: signals reach the process
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"].startswith("bondserve")
    assert config["Healthcheck"]["Test"][0] == "CMD"
    # the base may bring a little; what is built, installed with or tested with stays outside
    listed = docker("run", "--rm", "--entrypoint", "ls", image(name), "/app/bin", "/app").stdout
    assert not {"pip", "pytest", "ruff"} & set(listed.split())


def test_the_gateway_has_no_torch() -> None:
    script = (
        "import importlib.util as u; print([n for n in ('torch', 'peft', 'bond_trainer', 'asyncpg',"
        " 'transformers', 'bond_server') if u.find_spec(n)])"
    )
    ran = docker("run", "--rm", *CONFINED, "--entrypoint", "python", image("gateway"), "-c", script)
    assert ran.stdout.strip() == "['asyncpg', 'transformers', 'bond_server']"


def test_the_programs_of_a_backup_are_not_older_than_the_database() -> None:
    def major(of: str, program: str) -> int:
        said = docker("run", "--rm", "--entrypoint", program, of, "--version").stdout
        return int(re.findall(r"\(PostgreSQL\) (\d+)", said)[0])

    for program in ("pg_dump", "pg_restore"):
        assert major(image("trainer"), program) >= major("postgres:15-bookworm", "postgres")


@pytest.mark.parametrize("name", OURS)
def test_the_command_runs_on_a_read_only_root(name: str) -> None:
    assert docker("run", "--rm", *CONFINED, image(name), "--version").stdout == "bondserve 0.1.0\n"
    refused = docker(
        "run", "--rm", *CONFINED, "--entrypoint", "touch", image(name), "/app/x", check=False
    )
    assert "Read-only file system" in refused.stderr


@pytest.fixture
def slow_gateway() -> Iterator[tuple[str, str]]:
    """Name and URL of a gateway in a container, whose answers take three seconds."""
    name, port = f"bondserve-test-{secrets.token_hex(4)}", free_port()
    docker(
        "run", "--detach", "--name", name, *CONFINED, "--ulimit", "nofile=1024:3000",
        "--mount", f"type=volume,source={name},target=/data",
        "--mount", f"type=bind,source={SLOW},target=/etc/bondserve,readonly",
        "--publish", f"127.0.0.1:{port}:8080", image("gateway"),
    )  # fmt: skip
    try:
        until("the gateway is healthy", lambda: _healthy(name), 120)
        yield name, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", name, check=False)
        docker("volume", "rm", "--force", name, check=False)


def _healthy(name: str) -> bool:
    state = inspect(name)["State"]
    if not state["Running"]:
        pytest.fail(docker("logs", name).stderr)
    return state["Health"]["Status"] == "healthy"


def test_the_gateway_takes_the_open_files_that_it_may_have(slow_gateway: tuple[str, str]) -> None:
    limits = docker("exec", slow_gateway[0], "cat", "/proc/1/limits").stdout
    assert re.findall(r"Max open files +(\d+) +(\d+)", limits) == [("3000", "3000")]


def test_sigterm_lets_a_stream_end_and_refuses_new_requests(slow_gateway: tuple[str, str]) -> None:
    name, url = slow_gateway
    body = {"model": "slow", "messages": [{"role": "user", "content": "hello"}]}
    lines: list[str] = []
    begun = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60, trust_env=False) as http:
            begun.set()
            stream = {**body, "model": "slow:distilled", "stream": True}
            with http.stream("POST", f"{url}/v1/chat/completions", json=stream) as response:
                lines.extend(line for line in response.iter_lines() if line)

    asking = threading.Thread(target=ask)
    asking.start()
    begun.wait(10)
    time.sleep(1.5)  # it takes three seconds
    assert asking.is_alive()
    began = time.monotonic()
    docker("stop", "--time", "30", name)
    took_s = time.monotonic() - began
    asking.join(10)
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason"' in lines[-2] + lines[-3]
    assert took_s < 20  # it ended by itself
    state = inspect(name)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"{url}/v1/distilled", json=body, trust_env=False)
