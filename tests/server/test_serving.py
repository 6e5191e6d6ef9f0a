"""The process: its socket, its signals, and what survives it."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gateway_process import ready_gateway
from running_gateway import MODEL, eventually

from bond_core.errors import ConfigError
from bond_server.serving import claim_socket

HI = {"messages": [{"role": "user", "content": "hi"}]}


HELD_REWARDS = """
import time
from pathlib import Path


def held(prompts, completions, **kwargs):
    while not Path(__file__).with_name("go").exists():
        time.sleep(0.005)
    return [float(len(turns[0]["content"])) for turns in completions]
"""
"""Scores once there is a file `go`."""


def write_config(folder: Path, rewards: Path, **server: Any) -> Path:
    file = folder / "bond.yaml"
    delay_s, function = server.pop("delay_s", 0.0), server.pop("function", "length")
    document = {
        "model": {"path": "no-model", "name": MODEL},
        "engine": {"type": "fake", "delay_s": delay_s},
        "scorer": {"type": "function", "function": f"{rewards}:{function}"},
        "data_dir": "data",
        "server": {"port": 0, **server},
    }
    file.write_text(yaml.safe_dump(document))
    return file


def rows(config: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(config.parent / "data" / "bond.db")
    try:
        return connection.execute("SELECT id, status FROM completions").fetchall()
    finally:
        connection.close()


async def signalled_post(
    process: subprocess.Popen[str], url: str, then: Callable[[], Awaitable[None]] | None = None
) -> httpx.Response | None:
    """Send a request and, while it runs, SIGTERM; None if the connection broke."""
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        asking = asyncio.create_task(client.post("/v1/best-of-n", json=HI))

        async def in_flight() -> bool:
            return "bond_in_flight_requests 1.0" in (await client.get("/metrics")).text

        await eventually(in_flight)
        process.send_signal(signal.SIGTERM)
        if then is not None:
            await then()
        try:
            return await asking
        except httpx.TransportError:
            return None


async def is_closing(url: str) -> bool:
    """Whether the gateway takes no new connections."""
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as another:
            await another.get("/healthz")
    except httpx.TransportError:
        return True
    return False


async def test_sigterm_lets_running_requests_end(tmp_path: Path) -> None:
    rewards = tmp_path / "held.py"
    rewards.write_text(HELD_REWARDS)
    config = write_config(tmp_path, rewards, function="held")
    with ready_gateway(config) as (process, url):

        async def go_on() -> None:
            await eventually(lambda: is_closing(url))
            (tmp_path / "go").touch()

        response = await signalled_post(process, url, go_on)
        assert process.wait(60) == 0
    assert response is not None
    assert response.status_code == 200
    [(id_, status)] = rows(config)
    assert response.json()["id"] == f"chatcmpl-{id_}"
    assert status == "ok"


async def test_what_outlasts_the_grace_is_cancelled_and_recorded(
    tmp_path: Path, rewards_file: Path
) -> None:
    config = write_config(tmp_path, rewards_file, delay_s=600.0, shutdown_grace_s=1.0)
    with ready_gateway(config) as (process, url):
        response = await signalled_post(process, url)
        assert process.wait(30) == 0  # and not after the 60 s of its work
    assert response is not None
    assert response.status_code == 503
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "shutting_down")
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-request-id"]
    assert [status for _, status in rows(config)] == ["cancelled"]


async def test_an_interrupt_of_a_shutdown_ends_the_grace_and_not_the_account(
    tmp_path: Path, rewards_file: Path
) -> None:
    config = write_config(tmp_path, rewards_file, delay_s=600.0, shutdown_grace_s=300.0)
    with ready_gateway(config) as (process, url):

        async def interrupt() -> None:
            await eventually(lambda: is_closing(url))
            process.send_signal(signal.SIGINT)

        response = await signalled_post(process, url, interrupt)
        _, log = process.communicate(timeout=60)
    assert response is not None
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"
    assert [status for _, status in rows(config)] == ["cancelled"]
    assert process.returncode == 0
    assert "ERROR" not in log


def test_an_acknowledged_answer_survives_kill_9(tmp_path: Path, rewards_file: Path) -> None:
    config = write_config(tmp_path, rewards_file)
    with ready_gateway(config) as (process, url):
        with httpx.Client(base_url=url, trust_env=False) as client:
            ids = [client.post("/v1/distilled", json=HI).json()["id"] for _ in range(5)]
        process.kill()
        process.wait(60)
    assert [f"chatcmpl-{id_}" for id_, _ in rows(config)] == ids


async def test_a_client_that_closes_its_connection_cancels(
    tmp_path: Path, rewards_file: Path
) -> None:
    config = write_config(tmp_path, rewards_file, delay_s=600.0)
    with ready_gateway(config) as (_, url):
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            asking = asyncio.create_task(client.post("/v1/best-of-n", json=HI))

            async def in_flight() -> bool:
                return "bond_in_flight_requests 1.0" in (await client.get("/metrics")).text

            await eventually(in_flight)
            asking.cancel()  # which closes its connection
            await asyncio.wait({asking})

            async def recorded() -> bool:
                return len(rows(config)) == 1

            await eventually(recorded)
        assert [status for _, status in rows(config)] == ["cancelled"]


def test_a_second_gateway_on_the_same_data_is_refused(tmp_path: Path, rewards_file: Path) -> None:
    config = write_config(tmp_path, rewards_file)
    with ready_gateway(config):
        second = run_to_end(config)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("error: another gateway")


def test_a_port_in_use_is_told_before_anything_is_loaded(
    tmp_path: Path, rewards_file: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_to_end(write_config(tmp_path, rewards_file, port=port))
    assert ended.returncode == 1
    assert f"error: port {port} on 127.0.0.1 is in use" in ended.stderr
    assert "server.port" in ended.stderr
    assert not (tmp_path / "data").exists()


def run_to_end(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bond_server", str(config)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = writer.get_extra_info("socket")
        accepted.set_result(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with claim_socket("127.0.0.1", 0) as listener:
        server = await asyncio.start_server(on_connection, sock=listener)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await asyncio.wait_for(accepted, 60) == 1
        writer.close()
        server.close()


def test_port_0_is_any_free_port() -> None:
    with claim_socket("127.0.0.1", 0) as first, claim_socket("127.0.0.1", 0) as second:
        ports = {first.getsockname()[1], second.getsockname()[1]}
    assert len(ports) == 2
    assert 0 not in ports


def test_a_port_is_free_again_at_once() -> None:
    with claim_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        listener.listen()
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        server.close()  # closes first, so that the port lingers in TIME_WAIT
        client.close()
    with claim_socket("127.0.0.1", port) as again:
        assert again.getsockname() == ("127.0.0.1", port)


def test_a_host_that_does_not_resolve_is_told() -> None:
    with pytest.raises(ConfigError, match=r"server\.host 'no\.such\.host\.invalid'"):
        claim_socket("no.such.host.invalid", 0)


async def streamed_through_a_sigterm(process: Any, url: str) -> list[str]:
    """The lines of a stream in whose middle the gateway is told to end."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
        client.stream("POST", "/v1/distilled", json={**HI, "stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = response.aiter_lines()
        told = [await anext(lines)]
        process.send_signal(signal.SIGTERM)
        return told + [line async for line in lines]


async def test_sigterm_lets_streams_end(tmp_path: Path, rewards_file: Path) -> None:
    config = write_config(tmp_path, rewards_file, delay_s=3.0)
    with ready_gateway(config) as (process, url):
        told = await streamed_through_a_sigterm(process, url)
        assert process.wait(60) == 0
    assert [line for line in told if line][-1] == "data: [DONE]"
    assert [status for _, status in rows(config)] == ["ok"]


def test_every_line_of_a_json_log_is_json(tmp_path: Path, rewards_file: Path) -> None:
    config = write_config(tmp_path, rewards_file, log_format="json")
    with ready_gateway(config) as (process, url):
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port)) as scanner:
            scanner.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            scanner.recv(1000)
        assert httpx.post(f"{url}/v1/distilled", json=HI, trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=120)
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"bond.access", "uvicorn.error"} <= {line["logger"] for line in lines}


async def test_a_stream_that_outlasts_the_grace_of_a_shutdown_is_told_so(
    tmp_path: Path, rewards_file: Path
) -> None:
    config = write_config(tmp_path, rewards_file, delay_s=20, shutdown_grace_s=1)
    with ready_gateway(config) as (process, url):
        told = await streamed_through_a_sigterm(process, url)
        _, log = process.communicate(timeout=120)
    last = json.loads([line for line in told if line][-1].removeprefix("data: "))
    assert last["error"]["code"] == "shutting_down"
    assert "Traceback" not in log
    assert process.returncode == 0
    assert [status for _, status in rows(config)] == ["cancelled"]
