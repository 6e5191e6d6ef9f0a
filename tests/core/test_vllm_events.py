"""Server-sent events as they are read."""

import json

import pytest
from aiohttp import web
from failing_servers import Handler, Server

from bond_core.engines.vllm.connection import AwayError
from bond_core.engines.vllm.fleet import Fleet


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
