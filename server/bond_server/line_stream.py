"""Lines of JSON over one connection, at the pace of the client, until it goes away."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bond_server.http_protocol import hang_up
from bond_server.pace import StalledError, disconnected, send_within

logger = logging.getLogger(__name__)

PIECE_BYTES = 65_536
"""Sent at once: what a client has to take of within the time of one send."""


class LineStream(Response):
    """Sends each text as it comes. A client that takes nothing for `send_timeout_s` is hung up on,
    as one of an event stream is; one that goes away ends the texts within the same turn."""

    media_type = "application/x-ndjson"

    def __init__(self, texts: AsyncGenerator[str], send_timeout_s: float) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._texts = texts
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or what there is until the client closes the connection."""
        sending = asyncio.create_task(self._send_all(send))
        watching = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except StalledError:
            logger.warning("lines were ended: their client read nothing for too long")
            await hang_up(scope, watching)
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.wait({sending, watching})

    async def _send_all(self, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        async with aclosing(self._texts):
            await self._send(send, start)
            async for text in self._texts:
                lines = text.encode()
                for at in range(0, len(lines), PIECE_BYTES):
                    piece = lines[at : at + PIECE_BYTES]
                    await self._send(
                        send, {"type": "http.response.body", "body": piece, "more_body": True}
                    )
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        await send_within(send, message, self._send_timeout_s)
