"""Lets requests in before their body is read, and counts them against their key's limits."""

from dataclasses import replace
from http import HTTPStatus
from typing import cast

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bond_core.errors import BondError
from bond_server.access.bounded_body import CLIENT_CLOSED
from bond_server.access.gatekeeper import Credentials
from bond_server.access.meter import UNMETERED, Meter
from bond_server.access.query import NO_PARAMETERS, Known, refuse_unknown
from bond_server.access.rules import PATH_KEY, UNNAMED, rule_of
from bond_server.context import ANYONE, CONTEXT_KEY, RequestContext
from bond_server.errors import bond_error
from bond_server.gateway import Gateway


class AccessMiddleware:
    """Stands inside the outermost layer, which makes the request's context."""

    def __init__(self, app: ASGIApp, parameters: Known) -> None:
        self._app = app
        self._parameters = parameters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gatekeeper = cast(Gateway, scope["app"].state.gateway).gatekeeper
        method, path = scope["method"], scope["path"]
        rule = rule_of(method, path)
        meter, admitted = UNMETERED, None
        try:
            if not rule.is_open:
                credentials = Credentials.of(scope["headers"])
                admitted = gatekeeper.admit(rule, method, path, credentials)
            if (query := scope["query_string"]) and rule is not UNNAMED:
                refuse_unknown(query, self._parameters.get((method, rule.path), NO_PARAMETERS))
            if admitted is not None:
                if rule.is_limited:
                    meter = gatekeeper.meter(admitted)
                await meter.begin()
        except BondError as error:
            scope[PATH_KEY] = rule.path
            await bond_error(scope, error)(scope, receive, send)
            return
        if admitted is not None and admitted.caller is not ANYONE:
            context = cast(RequestContext, scope[CONTEXT_KEY])
            scope[CONTEXT_KEY] = replace(context, caller=admitted.caller, meter=meter)
        if meter is UNMETERED:
            await self._app(scope, receive, send)
            return
        metered = _Metered(send, meter)
        try:
            await self._app(scope, receive, metered.send)
        finally:
            await meter.end(broken_off=True)


class _Metered:
    """Settles before the client can know that the answer has ended, so that its next request
    finds what it is told."""

    def __init__(self, send: Send, meter: Meter) -> None:
        self._send = send
        self._meter = meter

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._meter.end(broken_off=False)
        await self._send(message)

    async def _start(self, message: Message) -> None:
        status = message["status"]
        refused = status >= HTTPStatus.BAD_REQUEST
        if refused or self._meter.knows_cost:  # else it is a stream with answers to come
            await self._meter.end(
                broken_off=status == CLIENT_CLOSED, counts=status != HTTPStatus.TOO_MANY_REQUESTS
            )
        headers = MutableHeaders(scope=message)
        for name, value in self._meter.headers().items():
            headers.setdefault(name, value)  # a refusal has said more exactly what is left
