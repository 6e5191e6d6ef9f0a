"""The outermost layer, as plain ASGI: request id, arrival time, body limit, defects of ours."""

import logging
import re
import time
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bond_server.context import CONTEXT_KEY, RequestContext
from bond_server.errors import internal_error
from bond_server.ids import uuid7
from bond_server.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 1024 * 1024
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestMiddleware:
    """Gives each request its context, and every answer its id and its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = _context_of(scope)
        scope[CONTEXT_KEY] = context
        watch = _Sending(send, context)
        limited = _Limited(receive, _declared_length(scope))
        try:
            await self._app(scope, limited.receive, watch.send)
        except Exception:
            logger.exception("request %s failed", context.request_id)
            if watch.status is not None:  # too late for an error; end the connection
                raise
            await internal_error(context.request_id)(scope, receive, watch.send)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", "unmatched")
            code = str(watch.status or 499)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.http_requests.labels(path, method, code).inc()


class _Limited:
    """Counts the body as it is read; over the limit, reading it is an HTTP error."""

    def __init__(self, receive: Receive, declared: int) -> None:
        self._receive = receive
        self._declared = declared
        self._read = 0

    async def receive(self) -> Message:
        if self._declared > MAX_BODY_BYTES:
            raise _too_large()
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > MAX_BODY_BYTES:
                raise _too_large()
        return message


class _Sending:
    """Adds headers to the start of the answer and remembers its status."""

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send = send
        self._context = context
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._context.request_id
            elapsed_ms = (time.perf_counter() - self._context.started) * 1000
            headers["openai-processing-ms"] = f"{elapsed_ms:.0f}"
        await self._send(message)


def _too_large() -> HTTPException:
    # the rest of the body is not read, so the connection cannot be used again
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {MAX_BODY_BYTES} bytes",
        {"connection": "close"},
    )


def _context_of(scope: Scope) -> RequestContext:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    request_id = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else uuid7()
    return RequestContext(request_id, time.time(), time.perf_counter())


def _declared_length(scope: Scope) -> int:
    value = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0
