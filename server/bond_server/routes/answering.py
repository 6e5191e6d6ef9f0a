"""From a body to an ask, and from an answer to a response; shared by the answering routes."""

import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request, Response

from bond_core.errors import InvalidRequestError
from bond_core.json_text import dump_json_bytes
from bond_core.store.settlement import KeptAnswer
from bond_core.types import TextDelta
from bond_server.access.bounded_body import refuse_too_many
from bond_server.context import RequestContext
from bond_server.errors import error_event
from bond_server.forms.answer import answer_headers, plan_headers
from bond_server.forms.chat import ChatForm
from bond_server.forms.events import Form, events
from bond_server.forms.text import TextForm
from bond_server.gateway import Gateway
from bond_server.routes.disconnect import CLIENT_CLOSED, until_disconnect
from bond_server.routes.once import UNIT_HEADER, kept_parts, once, origin_of
from bond_server.schemas.openai import (
    AnswerBody,
    ConversationBody,
    SamplingBody,
    TextCompletionRequest,
)
from bond_server.services.ask import Ask, Target
from bond_server.services.engine_fields import engine_fields
from bond_server.services.generation import Answer, Begun
from bond_server.services.idempotency import Claim
from bond_server.sse import EventStream, transcript

Prompted = ConversationBody | TextCompletionRequest
MAX_UNIT_CHARACTERS = 512
JSON = "application/json"


def make_ask(
    body: Prompted,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
    **further: Any,
) -> Ask:
    """The ask of a body; `further` are fields of the ask that only some routes fill."""
    if isinstance(body, ConversationBody):
        refuse_too_many(len(body.messages), gateway.config.access)
    params = body.to_params(gateway.config.sampling.params())
    if sent := body.model_extra:
        chat = not isinstance(body, TextCompletionRequest)
        declared = type(body).model_fields
        engines_own = engine_fields(sent, gateway.engine.info, declared, chat=chat)
        params = replace(params, further=engines_own)
    return Ask(
        context=context,
        requested_model=requested_model,
        target=target,
        messages=body.to_messages(),
        params=params,
        unit=unit_of(body, request, context),
        may_store=body.store,
        **further,
    )


def unit_of(body: SamplingBody, request: Request, context: RequestContext) -> str:
    """Whom the assignment sticks to: the most explicit name given, else this request alone."""
    return (
        _unit_given(request)
        or body.safety_identifier
        or body.user
        or (body.metadata or {}).get("session_id")
        or context.request_id
    )


def _unit_given(request: Request) -> str:
    """The header's unit, so that it is found again under the same name; empty if there is none."""
    sent = request.headers.get(UNIT_HEADER, "")
    try:
        unit = sent if sent.isascii() else sent.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(
            f"{UNIT_HEADER} is neither ASCII nor UTF-8", param=UNIT_HEADER
        ) from None
    if len(unit) > MAX_UNIT_CHARACTERS:
        raise InvalidRequestError(
            f"{UNIT_HEADER} has {len(unit)} characters; at most {MAX_UNIT_CHARACTERS} are taken",
            param=UNIT_HEADER,
        )
    return unit


async def respond(
    body: AnswerBody | TextCompletionRequest,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Response:
    """Answer a body, whole or in pieces; a client that goes away cancels the work."""
    ask = await full_ask(body, request, context, gateway, target, requested_model)

    async def answered(claim: Claim | None) -> Response:
        begun = await gateway.generation.begin(replace(ask, claim=claim) if claim else ask)
        if body.stream:
            return _stream(body, request, gateway, begun)
        return await _whole(body, request, gateway, begun)

    return await once(request, gateway, answered)


async def full_ask(
    body: AnswerBody | TextCompletionRequest,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Ask:
    """The ask of a body with all that it says; of several prompts, the first one's."""
    ask = make_ask(
        body,
        request,
        context,
        gateway,
        target,
        requested_model,
        n=body.n,
        best_of=body.best_of,
        deadline_s=None if body.bond.deadline_ms is None else body.bond.deadline_ms / 1000,
        origin=await origin_of(body, request),
    )
    return await _as_in_earlier_attempt(ask, gateway)


async def _whole(
    body: AnswerBody | TextCompletionRequest, request: Request, gateway: Gateway, begun: Begun
) -> Response:
    form, claim = _form_of(body), begun.ask.claim

    async def render(answer: Answer) -> KeptAnswer:
        return KeptAnswer(dump_json_bytes(form.whole(answer)), JSON, answer_headers(answer))

    if claim is not None:
        claim.render = render
    answer = await until_disconnect(request, gateway.generation.answer(begun))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED)
    # with a key, what is sent is what was kept, and so was rendered before the commit
    sent = (claim and claim.kept) or await render(answer)
    return Response(sent.body, headers=dict(sent.headers), media_type=sent.media_type)


def _stream(
    body: AnswerBody | TextCompletionRequest, request: Request, gateway: Gateway, begun: Begun
) -> Response:
    def told(parts: AsyncGenerator[TextDelta | Answer]) -> AsyncGenerator[str]:
        return events(
            _form_of(body),
            begun,
            parts,
            wants_usage=body.wants_usage,
            return_candidates=body.bond.return_candidates,
        )

    parts, claim = gateway.generation.stream(begun), begun.ask.claim
    if claim is not None:
        parts = kept_parts(parts, claim, lambda again: transcript(told(again), plan_headers(begun)))
    return EventStream(
        told(parts),
        plan_headers(begun),
        partial(error_event, request),
        gateway.config.server.keep_alive_s,
        gateway.config.server.send_timeout_s,
        gateway.generation.until(begun) if begun.plan.streams else None,
        lambda: begun.draft.queue_s is None,
    )


async def _as_in_earlier_attempt(ask: Ask, gateway: Gateway) -> Ask:
    """With the unit of an attempt that this one repeats, so that it meets the same arm."""
    digest = ask.origin.digest
    if not ask.origin.retry or digest is None or ask.unit != ask.context.request_id:
        return ask
    unit = await gateway.store.attempts.unit_of(digest, time.time())
    return replace(ask, unit=unit) if unit else ask


def _form_of(body: AnswerBody | TextCompletionRequest) -> Form:
    return_candidates = body.bond.return_candidates
    if isinstance(body, TextCompletionRequest):
        return TextForm(return_candidates=return_candidates)
    return ChatForm(return_candidates=return_candidates)
