"""The client of a long answer: whether it reads what is sent, and whether it is still there."""

import asyncio

from starlette.types import Message, Receive, Send


class StalledError(Exception):
    """The client reads nothing of what is sent."""


async def send_within(send: Send, message: Message, within_s: float) -> None:
    """Send, which waits until the client has read of what was sent before. Raises `StalledError`
    if it takes nothing for so long."""
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            await send(message)
    except TimeoutError:
        if not limit.expired():
            raise
        raise StalledError from None


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
