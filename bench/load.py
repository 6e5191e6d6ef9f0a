"""A load generator that costs little: HTTP/1.1 over pooled connections, on asyncio alone.

Latencies of an open loop count from the moment at which a request was due, so that a generator or
a server that falls behind does not hide it.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when it was due after the start, how long it took, and how it ended."""

    due_s: float
    seconds: float
    status: int
    """0 if the connection could not be made, broke, or nothing came in time."""


class _Connection(asyncio.Protocol):
    """One request at a time; knows where an answer ends by its content-length."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        found = head.find(b"content-length:")
        if found < 0:
            self._fail(ConnectionError("an answer without content-length"))
            return
        length = int(head[found + 15 : head.find(b"\r\n", found) % (len(head) + 1)])
        if len(self._buffer) < end + 4 + length:
            return
        status = int(head[9:12])
        body, self._buffer = self._buffer[end + 4 : end + 4 + length], b""
        if b"connection: close" in head:
            self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail(exc or ConnectionError("closed"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class LoadClient:
    """Requests to one server over as many connections as are needed at once."""

    def __init__(self, host: str, port: int, timeout_s: float = 30.0) -> None:
        self._address = host, port
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []

    def body(self, path: str, document: Any, headers: Sequence[str] = ()) -> bytes:
        """The bytes of a POST."""
        content = json.dumps(document).encode()
        lines = [
            f"POST {path} HTTP/1.1",
            f"host: {self._address[0]}:{self._address[1]}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises `OSError` or `TimeoutError`."""
        connection = await self._connected()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await connection.ask(request)
        except BaseException:
            assert connection.transport is not None
            connection.transport.abort()
            raise
        if not connection.closed:
            self._idle.append(connection)
        return answer

    async def timed(self, request: bytes, start: float, due_s: float) -> Outcome:
        """The outcome of a request that was due at `start + due_s` of `time.perf_counter()`."""
        try:
            status, _ = await self.ask(request)
        except (OSError, TimeoutError):
            status = 0
        return Outcome(due_s, time.perf_counter() - start - due_s, status)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()
        self._idle.clear()

    async def _connected(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
        return made


async def open_loop(
    client: LoadClient, request: bytes, rate: float, seconds: float, seed: int = 0
) -> list[Outcome]:
    """Poisson arrivals at a rate, whatever the server does."""
    chance = random.Random(seed)
    start = time.perf_counter()
    due_s = 0.0
    running: list[asyncio.Task[Outcome]] = []
    while (due_s := due_s + chance.expovariate(rate)) < seconds:
        ahead = start + due_s - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        running.append(asyncio.create_task(client.timed(request, start, due_s)))
    return list(await asyncio.gather(*running))


async def closed_loop(
    client: LoadClient, request: bytes, concurrency: int, seconds: float
) -> list[Outcome]:
    """So many users, each of whom asks again as soon as the answer is there."""
    start = time.perf_counter()

    async def user() -> list[Outcome]:
        found: list[Outcome] = []
        while (due_s := time.perf_counter() - start) < seconds:
            found.append(await client.timed(request, start, due_s))
        return found

    return [
        o for users in await asyncio.gather(*(user() for _ in range(concurrency))) for o in users
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share does not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Counts by status, and quantiles of the latency in milliseconds by status."""
    by_status: dict[int, list[float]] = {}
    for outcome in outcomes:
        by_status.setdefault(outcome.status, []).append(1000 * outcome.seconds)
    return {
        "requests": len(outcomes),
        "per_second": round(len(outcomes) / seconds, 1),
        "statuses": {
            str(status): {
                "count": len(found),
                **{f"p{100 * q:g}_ms": round(quantile(found, q), 3) for q in (0.5, 0.95, 0.99)},
                "max_ms": round(max(found), 3),
            }
            for status, found in sorted(by_status.items())
        },
    }
