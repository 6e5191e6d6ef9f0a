"""Who can reach a gateway: loopback alone, unless there are keys, or leave was given."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gateway_process import READY, gateway_process
from running_gateway import MakeConfig, Run

from bond_core.errors import ConfigError
from bond_core.store import Scope, open_store
from bond_server.access.binding import is_loopback
from bond_server.serving import claim_socket


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True),
        ("0.0.0.0", False), ("::", False), ("192.0.2.7", False), ("no.such.host.invalid", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


async def test_an_open_gateway_stays_on_loopback(run: Run, make_config: MakeConfig) -> None:
    config = make_config(server={"host": "0.0.0.0"})
    with pytest.raises(ConfigError) as refused:
        async with run(config):
            pass
    for remedy in ("bond keys create", "127.0.0.1", "access.allow_open"):
        assert remedy in str(refused.value)
    async with run(make_config(server={"host": "0.0.0.0"}, access={"allow_open": True})):
        pass
    store = await open_store(config.store_url)
    key, _ = await store.access.create("a", {Scope.READ})
    await store.access.revoke(key.id)  # closed for good: nobody is let in by mistake
    await store.close()
    async with run(config) as running:
        assert (await running.client.get("/v1/models")).status_code == 401


def write_config(folder: Path, rewards: Path, **sections: Any) -> Path:
    file = folder / "bond.yaml"
    document: dict[str, Any] = {
        "model": {"path": "no-model"},
        "engine": {"type": "fake"},
        "scorer": {"type": "function", "function": f"{rewards}:length"},
        "data_dir": "data",
        "server": {"port": 0},
        **sections,
    }
    file.write_text(yaml.safe_dump(document))
    return file


def test_the_process_refuses_before_it_loads_anything(tmp_path: Path, rewards_file: Path) -> None:
    server = {"host": "0.0.0.0", "port": 0}
    config = write_config(tmp_path, rewards_file, server=server, scorer={
        "type": "function", "function": "there.is.no.such.module:f"})  # fmt: skip
    with gateway_process(config) as (process, line):
        assert line == ""
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: server.host is 0.0.0.0, which others can reach" in errors


async def test_metrics_have_a_listener_of_their_own(tmp_path: Path, rewards_file: Path) -> None:
    with claim_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    config = write_config(tmp_path, rewards_file, access={"metrics_port": port, "refresh_s": 0.05})
    (tmp_path / "data").mkdir()
    store = await open_store(f"sqlite:///{tmp_path / 'data' / 'bond.db'}")
    _, secret = await store.access.create("a", {Scope.READ})
    await store.close()
    with gateway_process(config) as (process, line):
        assert line.startswith(READY)
        url = line.removeprefix(READY)
        async with httpx.AsyncClient(trust_env=False) as client:
            alone = await client.get(f"http://127.0.0.1:{port}/metrics")
            assert alone.status_code == 200
            assert 'bond_build_info{version="' in alone.text
            assert (await client.get(f"{url}/metrics")).status_code == 401
            bearer = {"authorization": f"Bearer {secret}"}
            among = await client.get(f"{url}/metrics", headers=bearer)
            assert among.status_code == 200
            answer = re.compile(r'bond_http_requests_total\{code="401"[^}]*route="/metrics"\} 1')
            assert answer.search(among.text)
            posted = await client.post(f"http://127.0.0.1:{port}/v1/distilled", json={})
            assert b"choices" not in posted.content
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_body_that_nobody_reads_leaves_the_connection_usable(
    tmp_path: Path, rewards_file: Path
) -> None:
    config = write_config(tmp_path, rewards_file)
    (tmp_path / "data").mkdir()
    store = await open_store(f"sqlite:///{tmp_path / 'data' / 'bond.db'}")
    _, secret = await store.access.create("a", {Scope.INFER})
    await store.close()
    hi = {"messages": [{"role": "user", "content": "hi"}]}
    with gateway_process(config) as (_, line):
        url = line.removeprefix(READY)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            for _ in range(3):
                large = {"messages": [{"role": "user", "content": "x" * 3_000_000}]}
                uninvited = await client.post("/v1/distilled", json=large)
                assert uninvited.status_code == 401
                headers = {"authorization": f"Bearer {secret}"}
                assert (await client.post("/v1/distilled", json=hi, headers=headers)).is_success


def test_a_metrics_port_in_use_is_told(tmp_path: Path, rewards_file: Path) -> None:
    with claim_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config(tmp_path, rewards_file, access={"metrics_port": port})
        with gateway_process(config) as (process, line):
            assert line == ""
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port} for metrics" in errors
