"""A route that reads its body straight into its model.

The framework resolves dependencies for each request, which for these routes is always the same two
attributes, and costs more than all of our own work on a body. A body that is not as it should be
goes the framework's way, so that what it is told is the same everywhere.
"""

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from bond_server.context import CONTEXT_KEY

_JSON = "application/json"
Endpoint = Callable[..., Awaitable[Response]]


class DirectRoute(APIRoute):
    """For endpoints `(body, request, context, gateway)` that return a response themselves."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        resolved = super().get_route_handler()
        endpoint = cast(Endpoint, self.endpoint)
        assert list(inspect.signature(endpoint).parameters) == [
            "body", "request", "context", "gateway",
        ], endpoint  # fmt: skip
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def handle(request: Request) -> Response:
            declared = request.headers.get("content-type", "")
            if declared.partition(";")[0].strip().lower() != _JSON:
                return await resolved(request)
            try:
                body = model.model_validate_json(await request.body())
            except ValidationError:
                return await resolved(request)  # reads the body again, which is kept
            gateway = request.app.state.gateway
            return await endpoint(body, request, request.scope[CONTEXT_KEY], gateway)

        return handle
