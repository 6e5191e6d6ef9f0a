"""The answering routes' short way: a good body goes straight from the socket to its endpoint.

For each request the framework looks for its route in every router, opens two stacks of contexts and
resolves dependencies, which for these routes are always the same two attributes; together that
costs more than all of our own work on a body. A body that is not as it should be goes the
framework's way, so that what it is told is the same everywhere.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bond_core.errors import BondError
from bond_server.context import CONTEXT_KEY
from bond_server.errors import bond_error

_JSON = "application/json"
_PARAMETERS = ["body", "request", "context", "gateway"]


@dataclass(frozen=True, slots=True)
class _Direct:
    route: APIRoute
    model: type[BaseModel]
    endpoint: Callable[..., Awaitable[Response]]


class DirectMiddleware:
    """Stands before the routing. Takes POSTs to the routes of some routers, whose endpoints are
    `(body, request, context, gateway)` and return a response themselves."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        self._app = app
        routes = [route for router in routers for route in router.routes]
        self._found = {route.path: _of(route) for route in cast(list[APIRoute], routes)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        direct = self._found.get(scope["path"]) if scope["type"] == "http" else None
        if direct is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        declared = request.headers.get("content-type", "")
        if declared.partition(";")[0].strip().lower() != _JSON:
            await self._app(scope, receive, send)
            return
        try:
            content = await request.body()
        except (HTTPException, ClientDisconnect) as error:
            await self._app(scope, _raising(error), send)
            return
        try:
            body = direct.model.model_validate_json(content)
        except ValidationError:
            await self._app(scope, _after(content, receive), send)
            return
        scope["route"] = direct.route
        gateway = scope["app"].state.gateway
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            response = await direct.endpoint(body, request, scope[CONTEXT_KEY], gateway)
            await response(scope, receive, send_on)
        except BondError as error:
            if begun:
                raise
            await bond_error(scope, error)(scope, receive, send)


def _of(route: APIRoute) -> _Direct:
    endpoint = route.endpoint
    assert route.methods == {"POST"}, route
    assert list(inspect.signature(endpoint).parameters) == _PARAMETERS, endpoint
    return _Direct(route, get_type_hints(endpoint)["body"], endpoint)


def _raising(error: Exception) -> Receive:
    """A body that cannot be read, once more."""

    async def receive() -> Message:
        raise error

    return receive


def _after(content: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then what else the connection has to tell."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        message: dict[str, Any] = {"type": "http.request", "body": content, "more_body": False}
        return message

    return again
