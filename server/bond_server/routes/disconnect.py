"""Work that ends when its client goes away."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

logger = logging.getLogger(__name__)

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
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        except Exception:
            # nobody reads this task's result, and nothing more will come from there
            logger.exception("a connection cannot be watched any more; it counts as closed")
        gone = True
        running.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and running.cancelling() == 1:
            return None
        raise  # somebody else's, as at a shutdown
    finally:
        watcher.cancel()
        if gone:
            running.uncancel()  # also where the work ended in spite of it
