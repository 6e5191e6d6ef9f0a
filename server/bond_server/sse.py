"""Server-sent events over one connection, with keep-alive comments, until the client goes away."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bond_core.store.settlement import KeptAnswer
from bond_server.http_protocol import hang_up
from bond_server.pace import StalledError, disconnected, send_within

logger = logging.getLogger(__name__)


_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Proxies such as nginx would collect the events otherwise."""
LATE_SEND_S = 5.0
"""What a send may take at least, also when the deadline is over: its error is an event too."""


async def transcript(events: AsyncGenerator[str], headers: Mapping[str, str]) -> KeptAnswer:
    """All of a stream as one text, to be sent again."""
    lines = [_event(data) async for data in events]
    return KeptAnswer("".join(lines).encode(), EventStream.media_type, {**headers, **UNBUFFERED})


class EventStream(Response):
    """Sends each event's data as it comes.

    Until the first event or keep-alive nothing is sent, so that an error before it is an ordinary
    answer with its status; `told` turns a later one into the data of a last event, without
    `[DONE]`. A client that goes away cancels the events within the same turn of the loop.
    After `keep_alive_s` silent seconds a comment is sent: proxies close connections that say
    nothing; but none while the request `may_be_refused`, as a refusal has a status and headers.
    A client that takes nothing for `send_timeout_s`, or until `until` (of the loop's clock) if
    that is earlier, is hung up on, which ends the events as if it had gone away.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str],
        headers: Mapping[str, str],
        told: Callable[[Exception | asyncio.CancelledError], str],
        keep_alive_s: float,
        send_timeout_s: float,
        until: float | None = None,
        may_be_refused: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(headers={**headers, **UNBUFFERED})
        del self.headers["content-length"]
        self._events = events
        self._told = told
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._until = until
        self._may_be_refused = may_be_refused
        self._started = False
        self._spoken = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or what there is until the client closes the connection."""
        sending = asyncio.create_task(self._send_all(send))
        watching = asyncio.create_task(disconnected(receive))
        keeping = asyncio.create_task(self._keep_alive(send))
        try:
            await asyncio.wait({sending, watching, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif keeping.done():
                keeping.result()
        except StalledError:
            logger.warning("a stream was ended: its client read nothing for too long")
            sending.cancel()
            await hang_up(scope, watching)
        except asyncio.CancelledError as error:  # of a shutdown whose grace is over
            await _ended(sending, watching, keeping)
            if not self._started:
                raise
            await self._say(send, _event(self._told(error)))
            await self._send(send, _END)
        finally:
            await _ended(sending, watching, keeping)

    async def _send_all(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._events):
                async for data in self._events:
                    await self._say(send, _event(data))
        except StalledError:
            raise
        except Exception as error:
            if not self._started:
                raise
            await self._say(send, _event(self._told(error)))
        await self._send(send, _END)

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_s)
            if not self._spoken and not (self._may_be_refused and self._may_be_refused()):
                await self._say(send, ": keep-alive\n\n")
            self._spoken = False

    async def _say(self, send: Send, text: str) -> None:
        self._spoken = True
        if not self._started:
            self._started = True
            await self._send(
                send,
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                },
            )
        body = text.encode()
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": True})

    async def _send(self, send: Send, message: Message) -> None:
        within_s = self._send_timeout_s
        if self._until is not None:
            left_s = self._until - asyncio.get_running_loop().time()
            within_s = min(within_s, max(left_s, LATE_SEND_S))
        await send_within(send, message, within_s)


def _event(data: str) -> str:
    return f"data: {data}\n\n"


async def _ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
