"""Which server gets a request, what is asked again, and who is left out: servers that fail."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from bond_core.engines.vllm.connection import AwayError, Connection, RefusedError
from bond_core.engines.vllm.fleet import Fleet
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import EngineUnavailableError

SERVER_KEEPS_S = 2.5
"""After which these servers close an idle connection; vLLM's do after 5 s."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A server whose behaviour a test sets; it counts what reaches it."""

    def __init__(self) -> None:
        self.behaviour: Handler = self.answers
        self.healthy = True
        self.names = ["base"]
        self.asked = 0
        self.url = ""

    async def answers(self, request: web.Request) -> web.Response:
        return web.json_response({"from": self.url})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return await self.behaviour(request)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.names]})


async def broken_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hanging(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def failing(status: int, message: str) -> Handler:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": message}}, status=status)

    return respond


@pytest.fixture
async def servers() -> AsyncIterator[list[Server]]:
    """Three of them, on free ports."""
    made: list[Server] = []
    runners: list[web.AppRunner] = []
    for _ in range(3):
        server = Server()
        app = web.Application()
        app.router.add_get("/health", server.health)
        app.router.add_get("/v1/models", server.models)
        app.router.add_post("/work", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, keepalive_timeout=SERVER_KEEPS_S)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        made.append(server)
        runners.append(runner)
    yield made
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def fleet(servers: list[Server]) -> AsyncIterator[Fleet]:
    made = fleet_over(servers)
    yield made
    await made.close()


def fleet_over(servers: list[Server], timeout_s: float = 5.0, failures: int = 3) -> Fleet:
    replicas = [
        Replica(Connection(s.url, "key", timeout_s=timeout_s, connect_timeout_s=1.0), failures)
        for s in servers
    ]
    for replica in replicas:
        replica.admit()
    return Fleet(replicas, every_s=0.02, timeout_s=0.5)


async def work(replica: Replica) -> Any:
    return await replica.connection.post("/work", {})


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


async def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


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
    async with asyncio.timeout(4):  # its own time-out is 5 s
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
    await asyncio.wait_for(was_left_out.wait(), 20)
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


async def test_events_are_read_until_done_and_a_cut_is_an_error(
    servers: list[Server], fleet: Fleet
) -> None:
    lines = [": keep-alive", 'data: {"a": 1}', "", 'data: {"b": "ü"}', "", "data: [DONE]"]

    def streaming(sent: list[str], *, cut: bool) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for line in sent:
                await response.write(f"{line}\n".encode())
            if cut:
                assert request.transport is not None
                request.transport.close()
            return response

        return respond

    connection = fleet.replicas[0].connection
    servers[0].behaviour = streaming(lines, cut=False)
    found = [json.loads(data) async for data in connection.events("/work", {})]
    assert found == [{"a": 1}, {"b": "ü"}]
    servers[0].behaviour = streaming(lines[:2], cut=True)
    with pytest.raises(AwayError):
        [data async for data in connection.events("/work", {})]


async def test_an_event_may_be_longer_than_a_buffer(servers: list[Server], fleet: Fleet) -> None:
    """The first one of a stream has the tokens of the prompt."""
    sent = list(range(100_000, 250_000))

    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"data: {json.dumps(sent)}\r\n\r\ndata: [DONE]\r\n\r\n".encode())
        return response

    servers[0].behaviour = respond
    [found] = [data async for data in fleet.replicas[0].connection.events("/work", {})]
    assert json.loads(found) == sent


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
