"""Saying no before any work: plain ASGI, ahead of routing, and without reading the body.

A refusal here costs a tenth of one that is first parsed, which is what lets the gateway refuse more
than it could answer.
"""

from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from bond_core.config import AdmissionConfig
from bond_core.errors import OverloadedError
from bond_server.errors import overloaded
from bond_server.loop_lag import LoopLag
from bond_server.metrics import Metrics

ANSWERING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/best-of-n",
        "/v1/distilled",
        "/v1/compare",
    }
)
"""Routes whose work is admitted; all others are asked for the state of things."""
ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})
"""What has to answer above all when there is too much to do."""
TOO_MANY_REQUESTS = "too_many_requests"
BEHIND = "behind"
RETRY_S = 1.0
BUSY_SHARE = 0.1
"""Of `max_requests`: with fewer in hand, a late event loop was held up once (a model was loaded in
this process, say), and is not short of time."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands where the router would have put its route, for counters and log."""

    path: str


class SheddingMiddleware:
    """Refuses requests beyond `max_requests`, and work while the queue for it is full or the event
    loop is too late to do it."""

    def __init__(
        self, app: ASGIApp, limits: AdmissionConfig, metrics: Metrics, lag: LoopLag
    ) -> None:
        self._app = app
        self._max_requests = limits.max_requests
        self._busy = BUSY_SHARE * limits.max_requests
        self._max_lag_s = limits.max_lag_s
        self._metrics = metrics
        self._lag = lag
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            if scope["path"] in ANSWERING:
                scope["route"] = Refused(scope["path"])
            await overloaded(refusal)(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests -= 1

    def _refusal(self, scope: Scope) -> OverloadedError | None:
        if self._requests >= self._max_requests:
            self._metrics.admission.refused.labels(TOO_MANY_REQUESTS).inc()
            return OverloadedError(
                f"the gateway has {self._requests} requests in hand (admission.max_requests)",
                code=TOO_MANY_REQUESTS,
                retry_after_s=RETRY_S,
            )
        if scope["method"] != "POST" or scope["path"] not in ANSWERING:
            return None
        if self._requests >= self._busy and (lag_s := self._lag.seconds) > self._max_lag_s:
            self._metrics.admission.refused.labels(BEHIND).inc()
            return OverloadedError(
                f"the gateway is {lag_s:.2f} s behind with {self._requests} requests in hand "
                "(admission.max_lag_s)",
                code=TOO_MANY_REQUESTS,
                retry_after_s=RETRY_S,
            )
        gateway: Any = scope["app"].state.gateway
        return gateway.admission.refusal()
