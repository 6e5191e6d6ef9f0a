"""uvicorn's protocol, with two ways to hang up: on a client that reads nothing, and on one that
sends without asking.

What a server writes waits in a buffer, and to close a connection is to wait until its buffer is
empty, which it never is for a client that has stopped reading. Only the transport can let go at
once, and ASGI has no word for it.

Before its head is whole a request is known to nobody: no key was looked at, no bound of the body
holds, and the parser keeps what comes in for as long as it comes. The same goes for what is sent
after an answer that did not wait for its body. So both are bounded here, in bytes and in time.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bond_core.config import AccessConfig
from bond_server.errors import HEAD_CODE
from bond_server.schemas.completion import ErrorAnswer, ErrorBody

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers; several times what browsers and SDKs send, cookies included."""
_HANG_UP_KEY = "bond_hang_up"
_SEEN_WITHIN_S = 1.0


class HangingUpProtocol(HttpToolsProtocol):
    """Tells each request how its connection can be ended at once; ends a connection that brings
    too long a head, or none for too long."""

    max_body_bytes = AccessConfig().max_body_bytes
    timeout_s = AccessConfig().body_timeout_s
    """From the opening of a connection, or the first byte that belongs to no running request, to
    the end of the next head."""

    _unasked = 0
    """Bytes that have come in since there was a request."""
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        # uvicorn's own signature, which is narrower than asyncio's
        super().connection_made(transport)
        self.app_state: dict[str, Any] = {**self.app_state, _HANG_UP_KEY: transport.abort}
        self._patience = self.loop.call_later(self.timeout_s, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._be_patient()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request, or of several."""
        super().data_received(data)
        cycle = self.cycle
        if cycle and cycle.scope is self.scope and not cycle.response_complete:
            if self._patience is not None:
                self._be_patient()
            return
        self._unasked += len(data)
        if self._patience is None:
            self._patience = self.loop.call_later(self.timeout_s, self._lose_patience)
        in_head = not cycle or cycle.scope is not self.scope
        most = MAX_HEAD_BYTES + (0 if in_head else self.max_body_bytes)
        if self._unasked > most and not self.transport.is_closing():
            if in_head and not self._is_answering:
                self.transport.write(_refusal())
                self.transport.close()
            else:
                self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _be_patient(self) -> None:
        self._unasked = 0
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        if self._is_answering:  # an earlier request of this connection, which may take its time
            self._patience = self.loop.call_later(self.timeout_s, self._lose_patience)
        else:
            self.transport.abort()


def bounded_by(access: AccessConfig) -> type[HangingUpProtocol]:
    """The protocol with a deployment's bounds."""
    bounds = {"max_body_bytes": access.max_body_bytes, "timeout_s": access.body_timeout_s}
    return type("BoundedProtocol", (HangingUpProtocol,), bounds)


async def hang_up(scope: Scope, watching: asyncio.Task[None]) -> None:
    """End the connection of a request, whatever waits to be sent; `watching` ends with it.

    Under another server than ours nothing happens: the connection is left to that server.
    """
    abort = scope.get("state", {}).get(_HANG_UP_KEY)
    if abort is not None:
        abort()
        await asyncio.wait({watching}, timeout=_SEEN_WITHIN_S)


def _refusal() -> bytes:
    """What whoever sends too long a head is told, before there is a request to answer."""
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    error = ErrorBody(
        message=f"the request's line and headers are larger than {MAX_HEAD_BYTES} bytes",
        type="invalid_request_error",
        param=None,
        code=HEAD_CODE,
    )
    body = ErrorAnswer(error=error).model_dump_json().encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
