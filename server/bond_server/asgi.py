"""The outermost layer, as plain ASGI: request id, arrival time, body limit, defects of ours."""

import asyncio
import logging
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bond_core.config import AccessConfig
from bond_server.access.bounded_body import BoundedBody
from bond_server.access.rules import route_of
from bond_server.context import CONTEXT_KEY, RequestContext
from bond_server.errors import internal_error, shutting_down
from bond_server.ids import uuid7
from bond_server.logs import ACCESS, REQUEST_ID
from bond_server.metrics import Metrics

logger = logging.getLogger(__name__)
access = logging.getLogger(ACCESS)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ARM_HEADER = b"x-bond-arm"
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestMiddleware:
    """Gives each request its context, and every answer its id and its time."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, access: AccessConfig, *, access_log: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access = access
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = _context_of(scope)
        scope[CONTEXT_KEY] = context
        of_this_request = REQUEST_ID.set(context.request_id)
        watch = _Sending(send, context)
        body = BoundedBody(receive, scope["headers"], self._access)
        try:
            await self._app(scope, body.receive, watch.send)
        except asyncio.CancelledError:  # only a shutdown whose grace is over cancels from outside
            if watch.status is not None:
                raise
            await shutting_down()(scope, receive, watch.send)
        except Exception:
            logger.exception("request %s failed", context.request_id)
            if watch.status is not None:  # too late for an error; end the connection
                raise
            await internal_error(context.request_id)(scope, receive, watch.send)
        finally:
            path = route_of(scope)
            code = str(watch.status or 499)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.http_requests(path, method, code).inc()
            if self._access_log:
                _log_access(method, path, code, context, watch.arm)
            REQUEST_ID.reset(of_this_request)


class _Sending:
    """Adds headers to the start of the answer and remembers its status."""

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send = send
        self._context = context
        self.status: int | None = None
        self.arm = "-"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: list[tuple[bytes, bytes]] = list(message["headers"])
            elapsed_ms = (time.perf_counter() - self._context.started) * 1000
            # nothing inside sets these two, so there is nothing to look for and replace
            headers.append((b"x-request-id", self._context.request_id.encode("latin-1")))
            headers.append((b"openai-processing-ms", b"%.0f" % elapsed_ms))
            message["headers"] = headers
            self.arm = next((v.decode() for name, v in headers if name == _ARM_HEADER), "-")
        await self._send(message)


def _log_access(method: str, path: str, code: str, context: RequestContext, arm: str) -> None:
    """One line when the request is over: the route, never the path, the body or a header."""
    spent_ms = (time.perf_counter() - context.started) * 1000
    fields = {
        "method": method,
        "route": path,
        "status": int(code),
        "ms": round(spent_ms, 3),
        "arm": arm,
    }
    if access.isEnabledFor(logging.INFO):
        # as `access.info` does, without looking for the line of code that says it
        said = (method, path, code, spent_ms, arm)
        line = logging.LogRecord(
            ACCESS, logging.INFO, __file__, 0, "%s %s %s %.1f ms %s", said, None, "_log_access"
        )
        line.fields = fields
        access.handle(line)


def _context_of(scope: Scope) -> RequestContext:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    request_id = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else uuid7()
    return RequestContext(request_id, time.time(), time.perf_counter())
