"""uvicorn's protocol, with a way to hang up on a client that reads nothing.

What a server writes waits in a buffer, and to close a connection is to wait until its buffer is
empty, which it never is for a client that has stopped reading. Only the transport can let go at
once, and ASGI has no word for it.
"""

import asyncio
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HANG_UP_KEY = "bond_hang_up"
_SEEN_WITHIN_S = 1.0


class HangingUpProtocol(HttpToolsProtocol):
    """Tells each request how its connection can be ended at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        self.app_state: dict[str, Any] = {**self.app_state, _HANG_UP_KEY: transport.abort}


async def hang_up(scope: Scope, watching: asyncio.Task[None]) -> None:
    """End the connection of a request, whatever waits to be sent; `watching` ends with it.

    Under another server than ours nothing happens: the connection is left to that server.
    """
    abort = scope.get("state", {}).get(_HANG_UP_KEY)
    if abort is not None:
        abort()
        await asyncio.wait({watching}, timeout=_SEEN_WITHIN_S)
