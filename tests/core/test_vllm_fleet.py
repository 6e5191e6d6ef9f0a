"""Which server gets a request, and what is asked again: servers that fail."""

import asyncio
import time

import pytest
from aiohttp import web
from failing_servers import (
    SERVER_KEEPS_S,
    Server,
    broken_off,
    failing,
    fleet_over,
    hanging,
    work,
)

from bond_core.engines.vllm.connection import RefusedError
from bond_core.engines.vllm.fleet import Fleet
from bond_core.errors import EngineUnavailableError


async def test_a_prefix_keeps_its_server_and_prefixes_spread(fleet: Fleet) -> None:
    chosen = {f"prefix {i}": fleet.choose(f"prefix {i}").url for i in range(300)}
    assert all(fleet.choose(prefix).url == url for prefix, url in chosen.items())
    counts = [list(chosen.values()).count(replica.url) for replica in fleet.replicas]
    assert min(counts) > 60


async def test_a_server_with_much_to_do_loses_its_prefix(fleet: Fleet) -> None:
    preferred = fleet.choose("p")
    with preferred.busy(4):
        assert fleet.choose("p") is preferred
    with preferred.busy(64):
        other = fleet.choose("p")
        assert other is not preferred
        with other.busy(3):
            assert fleet.choose("p").rows == 0
    assert fleet.choose("p") is preferred


async def test_losing_a_server_moves_only_its_own_prefixes(fleet: Fleet) -> None:
    before = {f"prefix {i}": fleet.choose(f"prefix {i}") for i in range(100)}
    gone = fleet.replicas[0]
    gone.exclude("gone")
    for prefix, replica in before.items():
        assert (fleet.choose(prefix) is replica) is (replica is not gone)


async def test_what_no_server_began_is_asked_again(servers: list[Server]) -> None:
    closed = Server()
    closed.url = "http://127.0.0.1:9"  # discard: nothing listens there
    fleet = fleet_over([closed, servers[0]])
    for number in range(64):  # about half of the prefixes are those of the closed one
        assert await fleet.call(f"{number}", 1, work) == {"from": servers[0].url}
    assert servers[0].asked == 64
    assert not fleet.replicas[0].ready  # three failures opened its breaker
    await fleet.close()


async def test_an_answer_that_broke_off_is_asked_for_once_more(
    servers: list[Server], fleet: Fleet
) -> None:
    by_url = {server.url: server for server in servers}
    first = by_url[fleet.choose("p").url]
    first.behaviour = broken_off
    answer = await fleet.call("p", 1, work)
    assert answer["from"] != first.url
    assert first.asked == 2  # once more on a new connection, since the first may have been stale
    assert sum(server.asked for server in servers) == 3
    for server in servers:
        server.behaviour = broken_off
    with pytest.raises(EngineUnavailableError):
        await fleet.call("p", 1, work)
    assert sum(server.asked > 0 for server in servers) == 2  # and never all three


async def test_a_single_server_whose_connection_was_stale_is_asked_again(
    servers: list[Server],
) -> None:
    fleet = fleet_over(servers[:1])
    server = servers[0]

    async def once(request: web.Request) -> web.StreamResponse:
        server.behaviour = server.answers
        return await broken_off(request)

    server.behaviour = once
    assert await fleet.call("p", 1, work) == {"from": server.url}
    assert server.asked == 2
    await fleet.close()


async def test_a_burst_after_a_pause_meets_no_connections_that_the_server_has_closed(
    servers: list[Server],
) -> None:
    """Each would count as a failure, and three of them open the breaker of a healthy server."""
    fleet = fleet_over(servers[:1])
    for _ in range(2):
        answers = await asyncio.gather(*(fleet.call(f"{i}", 1, work) for i in range(40)))
        assert len(answers) == 40
        time.sleep(SERVER_KEEPS_S + 0.5)  # noqa: ASYNC251 - a loop too busy to see them closed
    assert servers[0].asked == 80  # none was asked again
    assert fleet.replicas[0].ready
    await fleet.close()


async def test_a_time_out_is_not_asked_again(servers: list[Server]) -> None:
    fleet = fleet_over(servers, timeout_s=0.2)
    for server in servers:
        server.behaviour = hanging
    with pytest.raises(EngineUnavailableError, match="in time"):
        await fleet.call("p", 1, work)
    assert sum(server.asked for server in servers) == 1
    await fleet.close()


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_is_told_and_not_passed_on_to_the_next_server(
    servers: list[Server], fleet: Fleet, status: int
) -> None:
    """A request that makes one server fail must not be tried on all of them."""
    for server in servers:
        server.behaviour = failing(status, "engine is dead")
    with pytest.raises(EngineUnavailableError, match="engine is dead"):
        await fleet.call("p", 1, work)
    assert sum(server.asked for server in servers) == 1


async def test_a_refusal_is_the_callers_and_opens_no_breaker(
    servers: list[Server], fleet: Fleet
) -> None:
    for server in servers:
        server.behaviour = failing(400, "top_p is 7")
    for _ in range(9):
        with pytest.raises(RefusedError, match="top_p is 7"):
            await fleet.call("p", 1, work)
    assert all(replica.ready for replica in fleet.replicas)


async def test_a_page_that_is_no_json_is_its_text(servers: list[Server], fleet: Fleet) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>")

    for server in servers:
        server.behaviour = page
    assert await fleet.call("p", 1, work) == "<html>"


async def test_the_key_is_sent(servers: list[Server], fleet: Fleet) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.json_response(request.headers["authorization"])

    for server in servers:
        server.behaviour = echo
    assert await fleet.call("p", 1, work) == "Bearer key"


async def test_nobody_left_names_every_reason(fleet: Fleet) -> None:
    for number, replica in enumerate(fleet.replicas):
        replica.exclude(f"reason {number}")
    with pytest.raises(EngineUnavailableError, match=r"reason 0.*reason 1.*reason 2"):
        fleet.choose("p")


async def test_streams_that_succeed_keep_failures_from_being_in_a_row(
    servers: list[Server], fleet: Fleet
) -> None:
    replica = fleet.replicas[0]
    for other in fleet.replicas[1:]:
        other.exclude("not this one")
    for _ in range(5):
        servers[0].behaviour = failing(500, "no")
        with pytest.raises(EngineUnavailableError):
            async with fleet.held("p", 1):
                [data async for data in replica.connection.events("/work", {})]
        servers[0].behaviour = servers[0].answers
        async with fleet.held("p", 1):
            assert [data async for data in replica.connection.events("/work", {})] == []
    assert replica.ready
