"""A client that goes away, before the first byte or in the middle, ends the engine's work."""

import asyncio
import json
import time
from typing import Any

import pytest
from running_gateway import MODEL, MakeConfig, eventually
from served_gateway import HI, Serve, Served

LIMIT_S = 0.1
ATTEMPTS, MOST_ATTEMPTS = 3, 30
"""The fastest counts: what else this machine does is not the gateway's."""

SINGLE = {"model": f"{MODEL}:reference", "messages": HI, "max_tokens": 100}
BEST = {"model": f"{MODEL}:bon", "messages": HI, "best_of": 6, "max_tokens": 100}


async def connect(served: Served, body: dict[str, Any]) -> tuple[Any, Any]:
    """Send a request over a connection of its own."""
    reader, writer = await asyncio.open_connection(served.host, served.port)
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    return reader, writer


async def seconds_until_idle(served: Served, body: dict[str, Any], children: int) -> float:
    """From closing the connection until the engine holds nothing."""
    reader, writer = await connect(served, body)

    async def all_at_work() -> bool:
        return served.engine.in_progress == children

    await eventually(all_at_work)
    if body.get("stream"):
        # a single sample speaks, and a selection is kept alive
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"\n\n")
    closed = time.perf_counter()
    writer.close()
    while served.engine.in_progress:
        assert time.perf_counter() - closed < 60, "the engine works on"
        await asyncio.sleep(0.001)
    return time.perf_counter() - closed


@pytest.mark.parametrize(
    ("body", "children"),
    [
        (SINGLE, 1),
        (SINGLE | {"n": 3}, 3),
        (BEST, 6),
        (SINGLE | {"stream": True}, 1),
        (SINGLE | {"stream": True, "n": 3}, 3),
        (BEST | {"stream": True}, 6),
    ],
    ids=["single", "samples", "best-of-n", "single-mid", "samples-mid", "best-of-n-mid"],
)
async def test_closing_the_connection_ends_all_children(
    body: dict[str, Any], children: int, serve: Serve, make_config: MakeConfig
) -> None:
    config = make_config(
        engine={"type": "fake", "delay_s": 600.0},
        server={"keep_alive_s": 0.05},
    )
    arm = body["model"].rpartition(":")[2]
    async with serve(config) as served:
        times = [await seconds_until_idle(served, body, children) for _ in range(ATTEMPTS)]
        while min(times) >= LIMIT_S and len(times) < MOST_ATTEMPTS:
            times.append(await seconds_until_idle(served, body, children))

        async def recorded() -> bool:
            return served.metric("bond_log_rows_total", arm=arm, status="cancelled") == len(times)

        await eventually(recorded)
        assert served.engine.drawn <= len(times)  # of a stream the law is drawn first
        assert served.metric("bond_in_flight_requests") == 0
        assert served.metric("bond_requests_total", arm=arm, status="ok") == 0
    assert min(times) < LIMIT_S, times


@pytest.mark.parametrize("stream", [False, True])
async def test_closing_before_the_first_byte_ends_what_waits_for_the_engine(
    stream: bool, serve: Serve, make_config: MakeConfig
) -> None:
    config = make_config(engine={"type": "fake", "delay_s": 600.0, "capacity": 2})
    async with serve(config) as served:
        first = await seconds_until_idle(served, BEST | {"stream": False}, 2)
        _, writer = await connect(served, BEST | {"stream": stream})

        async def at_work() -> bool:
            return served.engine.in_progress == 2

        await eventually(at_work)
        writer.close()

        async def idle() -> bool:
            return served.engine.in_progress == 0

        await eventually(idle)
        await asyncio.sleep(0.05)
        assert served.engine.in_progress == 0  # no child that waited took the free place
        assert first < 60

        async def recorded() -> bool:
            return served.metric("bond_log_rows_total", arm="bon", status="cancelled") == 2

        await eventually(recorded)
