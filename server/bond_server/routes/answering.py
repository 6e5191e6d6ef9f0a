"""From a body to an ask, and from an answer to a response; shared by the answering routes."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request, Response

from bond_server.access.bounded_body import refuse_too_many
from bond_server.context import RequestContext
from bond_server.gateway import Gateway
from bond_server.schemas.openai import AnswerBody, GenerationBody
from bond_server.services.ask import Ask, Target
from bond_server.views import completion_headers, completion_view

UNIT_HEADER = "x-bond-unit"
MAX_UNIT_CHARACTERS = 512
CLIENT_CLOSED = 499

_T = TypeVar("_T")


def make_ask(
    body: GenerationBody,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Ask:
    """The ask of a body; `n` and `best_of` are the caller's to add."""
    refuse_too_many(len(body.messages), gateway.config.access)
    return Ask(
        context=context,
        requested_model=requested_model,
        target=target,
        messages=body.to_messages(),
        params=body.to_params(gateway.config.sampling.params()),
        unit=unit_of(body, request, context),
        may_store=body.store,
    )


def unit_of(body: GenerationBody, request: Request, context: RequestContext) -> str:
    """Whom the assignment sticks to: the most explicit name given, else this request alone."""
    return (
        request.headers.get(UNIT_HEADER, "")[:MAX_UNIT_CHARACTERS]
        or body.safety_identifier
        or body.user
        or (body.metadata or {}).get("session_id")
        or context.request_id
    )


async def respond(
    body: AnswerBody,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Response:
    """Answer a chat-completions body; a client that goes away cancels the work."""
    ask = make_ask(body, request, context, gateway, target, requested_model)
    ask = replace(ask, n=body.n, best_of=body.best_of)
    answer = await until_disconnect(request, gateway.generation.answer(ask))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    view = completion_view(answer, return_candidates=body.bond.return_candidates)
    return Response(
        view.model_dump_json(), headers=completion_headers(answer), media_type="application/json"
    )


async def until_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of the work, or None if the client closed the connection first."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for pending in (task, watcher):
            if not pending.done():
                pending.cancel()
        await asyncio.wait({task, watcher})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
