"""Clients that open a stream and stop reading: what they hold is given back, and they are hung up
on."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from running_gateway import MODEL, MakeConfig, eventually
from served_gateway import HI, Serve, Served
from stored import all_rows

from bond_core.store.stored import StoredQuery
from bond_core.types import Conversation, SamplingParams, TextDelta

PIECE = "x" * 2_000_000
"""A few of them are more than the sockets between a client and the gateway hold."""


def speaking(served: Served, pieces: int, *, then_silent: bool = False) -> list[str]:
    """Let the engine tell so many long pieces before its answer, if it comes to that; returns what
    will say how its stream ended."""
    told, ended = served.engine.stream, list[str]()

    async def stream(
        version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncGenerator[TextDelta]:
        try:
            for number in range(pieces):
                await asyncio.sleep(0)
                yield TextDelta(PIECE, num_tokens=number + 1)
            if then_silent:
                yield TextDelta(10 * PIECE, num_tokens=pieces + 1)
                await asyncio.sleep(600)
            async for piece in told(version, prompt, params):
                yield piece
            ended.append("told")
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    served.engine.stream = stream  # type: ignore[method-assign]
    return ended


async def asking(served: Served, **body: Any) -> socket.socket:
    """A connection on which a stream has begun, of which nothing more is read."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, (served.host, served.port))
    asked = {"model": f"{MODEL}:reference", "messages": HI, "stream": True, **body}
    content = json.dumps(asked).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    await loop.sock_sendall(client, head.encode() + content)
    assert (await loop.sock_recv(client, 12)) == b"HTTP/1.1 200"
    return client


async def assert_given_back(served: Served) -> None:
    """Place, version, row and connection, while the client still holds its end."""

    async def given_back() -> bool:
        return served.gateway.admission.running_rows == 0 and not served.connections

    await eventually(given_back)
    assert not +served.gateway.policies._in_use
    assert served.metric("bond_requests_in_flight") == 0
    await served.gateway.background.drain(60.0)
    [row] = await all_rows(served.gateway.store)
    assert (row.status, row.error) == ("cancelled", "cancelled before it was answered")


@pytest.mark.parametrize("then_silent", [False, True], ids=["while told", "while silent"])
async def test_a_client_that_stops_reading_is_hung_up_on(
    serve: Serve, make_config: MakeConfig, then_silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(server={"send_timeout_s": 1.0, "keep_alive_s": 0.05})
    async with serve(config) as served:
        ended = speaking(served, 0 if then_silent else 10_000, then_silent=then_silent)
        client = await asking(served)
        try:
            assert served.gateway.admission.running_rows == 1
            await assert_given_back(served)
        finally:
            client.close()
        # in the middle of a send, or by a keep-alive's while the engine was waited for
        assert ended == ["CancelledError" if then_silent else "GeneratorExit"]
    assert [r.levelname for r in caplog.records if r.name == "bond_server.sse"] == ["WARNING"]
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def test_a_deadline_ends_a_stream_that_nobody_reads(
    serve: Serve, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bond_server.sse.LATE_SEND_S", 0.1)
    async with serve(make_config(server={"send_timeout_s": 600})) as served:
        speaking(served, 10_000)
        client = await asking(served, bond={"deadline_ms": 1500})
        try:
            await assert_given_back(served)
        finally:
            client.close()


async def test_a_client_that_pauses_gets_all_of_it(serve: Serve, make_config: MakeConfig) -> None:
    async with serve(make_config(server={"send_timeout_s": 20.0, "keep_alive_s": 60})) as served:
        ended = speaking(served, 8)
        client, loop = await asking(served), asyncio.get_running_loop()
        received, tail, pauses = 0, b"", 0
        try:
            while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                data = await loop.sock_recv(client, 1 << 20)
                assert data, tail
                received, tail = received + len(data), (tail + data)[-60:]
                if received > (pauses + 1) * 4_000_000:
                    pauses += 1
                    await asyncio.sleep(0.2)
        finally:
            client.close()
        assert received > 8 * len(PIECE)
        assert pauses == 4
        assert ended == ["told"]
        assert served.metric("bond_requests_total", arm="reference", status="ok") == 1


async def test_an_export_that_nobody_reads_is_ended(
    serve: Serve, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(make_config(server={"send_timeout_s": 0.3})) as served:
        ended = asyncio.Event()

        async def export(query: StoredQuery, after: str | None) -> AsyncGenerator[list[Any]]:
            try:
                [row] = await all_rows(served.gateway.store)
                while True:
                    await asyncio.sleep(0)
                    yield [row] * 200
            finally:
                ended.set()

        await served.client.post("/v1/distilled", json={"messages": HI})
        served.gateway.stored.export = export  # type: ignore[method-assign]
        client, loop = socket.socket(), asyncio.get_running_loop()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (served.host, served.port))
        try:
            await loop.sock_sendall(client, b"GET /v1/export HTTP/1.1\r\nhost: gateway\r\n\r\n")
            assert (await loop.sock_recv(client, 12)) == b"HTTP/1.1 200"
            await asyncio.wait_for(ended.wait(), 60)

            async def let_go() -> bool:
                return len(served.connections) <= 1  # that of the other client

            await eventually(let_go)
        finally:
            client.close()
    assert [r.levelname for r in caplog.records if r.name == "bond_server.line_stream"] == [
        "WARNING"
    ]
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
