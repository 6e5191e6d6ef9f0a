"""From a body to an ask, and from an answer to a response; shared by the answering routes."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response

from bond_server.access.bounded_body import refuse_too_many
from bond_server.context import RequestContext
from bond_server.errors import error_event
from bond_server.forms.answer import answer_headers, plan_headers
from bond_server.forms.chat import ChatForm
from bond_server.forms.events import Form, events
from bond_server.forms.text import TextForm
from bond_server.gateway import Gateway
from bond_server.schemas.openai import (
    AnswerBody,
    ConversationBody,
    SamplingBody,
    TextCompletionRequest,
)
from bond_server.services.ask import Ask, Target
from bond_server.services.engine_fields import engine_fields
from bond_server.sse import EventStream

Prompted = ConversationBody | TextCompletionRequest
UNIT_HEADER = "x-bond-unit"
MAX_UNIT_CHARACTERS = 512
CLIENT_CLOSED = 499

_T = TypeVar("_T")


def make_ask(
    body: Prompted,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Ask:
    """The ask of a body; `n` and `best_of` are the caller's to add."""
    if isinstance(body, ConversationBody):
        refuse_too_many(len(body.messages), gateway.config.access)
    params = body.to_params(gateway.config.sampling.params())
    sent = body.model_extra
    if sent:
        chat = not isinstance(body, TextCompletionRequest)
        declared = type(body).model_fields
        further = engine_fields(sent, gateway.engine.info, declared, chat=chat)
        params = replace(params, further=further)
    return Ask(
        context=context,
        requested_model=requested_model,
        target=target,
        messages=body.to_messages(),
        params=params,
        unit=unit_of(body, request, context),
        may_store=body.store,
    )


def unit_of(body: SamplingBody, request: Request, context: RequestContext) -> str:
    """Whom the assignment sticks to: the most explicit name given, else this request alone."""
    return (
        request.headers.get(UNIT_HEADER, "")[:MAX_UNIT_CHARACTERS]
        or body.safety_identifier
        or body.user
        or (body.metadata or {}).get("session_id")
        or context.request_id
    )


async def respond(
    body: AnswerBody | TextCompletionRequest,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Response:
    """Answer a body, whole or in pieces; a client that goes away cancels the work."""
    ask = make_ask(body, request, context, gateway, target, requested_model)
    deadline_s = None if body.bond.deadline_ms is None else body.bond.deadline_ms / 1000
    ask = replace(ask, n=body.n, best_of=body.best_of, deadline_s=deadline_s)
    begun = await gateway.generation.begin(ask)
    form = _form_of(body)
    if body.stream:
        parts = gateway.generation.stream(begun)
        told = events(
            form,
            begun,
            parts,
            wants_usage=body.wants_usage,
            return_candidates=body.bond.return_candidates,
        )
        return EventStream(
            told,
            plan_headers(begun),
            partial(error_event, request),
            gateway.config.server.keep_alive_s,
        )
    answer = await until_disconnect(request, gateway.generation.answer(begun))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    return Response(
        form.whole(answer).model_dump_json(),
        headers=answer_headers(answer),
        media_type="application/json",
    )


def _form_of(body: AnswerBody | TextCompletionRequest) -> Form:
    return_candidates = body.bond.return_candidates
    if isinstance(body, TextCompletionRequest):
        return TextForm(return_candidates=return_candidates)
    return ChatForm(return_candidates=return_candidates)


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
