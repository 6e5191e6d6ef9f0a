"""What routes ask for: the gateway and the context of the request.

Asynchronous, because the framework would send plain functions through its thread pool.
"""

from typing import Annotated, cast

from fastapi import Depends, Request

from bond_server.context import CONTEXT_KEY, RequestContext
from bond_server.gateway import Gateway


async def gateway_of(request: Request) -> Gateway:
    """The gateway that the lifespan opened."""
    return cast(Gateway, request.app.state.gateway)


async def context_of(request: Request) -> RequestContext:
    """Id and arrival of this request."""
    return cast(RequestContext, request.scope[CONTEXT_KEY])


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
ContextDep = Annotated[RequestContext, Depends(context_of)]
