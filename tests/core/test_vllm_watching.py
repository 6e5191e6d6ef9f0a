"""Which servers are left out, and when they come back."""

import asyncio

import pytest
from failing_servers import (
    Server,
    hanging,
    until,
    work,
)

from bond_core.engines.vllm.fleet import Fleet
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import EngineUnavailableError


async def test_a_server_that_misses_its_looks_is_left_out_and_comes_back_restored(
    servers: list[Server], fleet: Fleet
) -> None:
    restored: list[Replica] = []

    async def restore(replica: Replica) -> None:
        assert not replica.ready
        restored.append(replica)

    fleet.watch(restore)
    sick, ours = servers[1], fleet.replicas[1]
    sick.healthy = False
    await until(lambda: not ours.ready)
    assert "503" in ours.why_not_ready
    assert fleet.replicas[0].ready
    assert fleet.replicas[2].ready
    sick.healthy = True
    await until(lambda: ours.ready)
    assert restored == [ours]


async def test_what_runs_on_a_server_that_goes_away_is_asked_elsewhere_at_once(
    servers: list[Server], fleet: Fleet
) -> None:
    async def restore(replica: Replica) -> None:
        raise EngineUnavailableError("not yet")

    fleet.watch(restore)
    by_url = {server.url: server for server in servers}
    hung = by_url[fleet.choose("p").url]
    hung.behaviour = hanging
    asking = asyncio.create_task(fleet.call("p", 1, work))
    await until(lambda: hung.asked == 1)
    hung.healthy = False
    async with asyncio.timeout(30):  # its own time-out is 60 s
        answer = await asking
    assert answer["from"] != hung.url


async def test_a_server_that_lost_an_adapter_is_left_out_until_it_has_it(
    servers: list[Server], fleet: Fleet
) -> None:
    ours, server = fleet.replicas[0], servers[0]
    ours.adapters = {"v0001-abc"}
    was_left_out = asyncio.Event()

    async def restore(replica: Replica) -> None:
        if replica is ours and not ours.ready:
            was_left_out.set()
            server.names.append("v0001-abc")

    fleet.watch(restore)
    await asyncio.wait_for(was_left_out.wait(), 60)
    await until(lambda: ours.ready)
    assert ours.adapters <= set(server.names)


async def test_a_restore_that_fails_keeps_the_server_out_with_the_reason(
    servers: list[Server], fleet: Fleet
) -> None:
    async def restore(replica: Replica) -> None:
        raise EngineUnavailableError("the probe of v0007 failed")

    fleet.replicas[0].exclude("gone")
    fleet.watch(restore)
    await until(lambda: "v0007" in fleet.replicas[0].why_not_ready)
    assert not fleet.replicas[0].ready


async def test_what_is_loaded_during_a_look_is_not_missing(
    servers: list[Server], fleet: Fleet
) -> None:
    ours, looks = fleet.replicas[0], 0
    ours.adapters, servers[0].names = {"v0000-a"}, ["base", "v0000-a"]
    names = ours.names

    async def stale(timeout_s: float) -> set[str]:
        nonlocal looks
        found = await names(timeout_s)
        looks += 1
        servers[0].names.append(f"v{looks:04d}")
        ours.adapters.add(f"v{looks:04d}")  # the load was answered before the look was read
        return found

    async def restore(replica: Replica) -> None:
        pytest.fail("nothing was missing")

    ours.names = stale
    fleet.watch(restore)
    await until(lambda: looks > 5)
    assert ours.ready
