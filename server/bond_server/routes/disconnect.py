"""Work that ends when its client goes away."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

CLIENT_CLOSED = 499

_T = TypeVar("_T")


async def until_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of the work, or None if the client closed the connection first.

    The work runs in the caller's own task, which is cheaper than one more; only the watching of the
    connection has a task, and ends the work by cancelling its caller, who does not feel it.
    """
    running = asyncio.current_task()
    assert running is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        running.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and running.uncancel() == 0:
            return None
        raise  # somebody else's, as at a shutdown
    finally:
        watcher.cancel()
