"""The parent span of each request, as plain ASGI."""

from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bond_server.tracing.spans import Tracing, entered, fail

UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""What is asked every few seconds and says nothing of a request."""
_CARRIED = {b"traceparent", b"tracestate"}


class TracingMiddleware:
    """Begins a span where a request comes in, and ends it when its answer is sent."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        carrier = {
            name.decode("ascii"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _CARRIED
        }
        span = self._tracing.request(scope["method"], carrier)
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with entered(span):
                await self._app(scope, receive, watched)
        except BaseException as error:
            fail(span, type(error).__name__)
            raise
        finally:
            route: Any = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.set_attribute("http.route", route)
            if status:
                span.set_attribute("http.response.status_code", status)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                fail(span, str(status))
            span.end()
