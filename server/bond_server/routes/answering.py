"""From a body to an ask, and from an answer to a response; shared by the answering routes."""

import time
from dataclasses import replace

from fastapi import Request, Response

from bond_core.store.records import Origin
from bond_core.store.settlement import KeptAnswer
from bond_server.context import RequestContext
from bond_server.gateway import Gateway
from bond_server.routes.disconnect import CLIENT_CLOSED, until_disconnect
from bond_server.routes.once import once, origin_of
from bond_server.schemas.openai import AnswerBody, GenerationBody
from bond_server.services.ask import Ask, Target
from bond_server.services.generation import Answer
from bond_server.services.idempotency import Claim
from bond_server.views import completion_headers, completion_view

UNIT_HEADER = "x-bond-unit"
MAX_UNIT_CHARACTERS = 512
JSON = "application/json"


def make_ask(
    body: GenerationBody,
    request: Request,
    context: RequestContext,
    gateway: Gateway,
    target: Target,
    requested_model: str,
) -> Ask:
    """The ask of a body; `n` and `best_of` are the caller's to add."""
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
    origin = await origin_of(body, request, request.headers.get(UNIT_HEADER, ""))
    unit = await _unit_of_earlier_attempt(ask, origin, gateway)
    ask = replace(ask, n=body.n, best_of=body.best_of, origin=origin, unit=unit)

    def render(answer: Answer) -> KeptAnswer:
        view = completion_view(answer, return_candidates=body.bond.return_candidates)
        return KeptAnswer(view.model_dump_json().encode(), JSON, completion_headers(answer))

    async def answered(claim: Claim | None) -> Response:
        if claim is not None:
            claim.render = render
        work = gateway.generation.answer(replace(ask, claim=claim))
        answer = await until_disconnect(request, work)
        if answer is None:
            return Response(status_code=CLIENT_CLOSED)
        # with a key the answer was rendered before its commit, so that what is sent is what is kept
        sent = (claim and claim.kept) or render(answer)
        return Response(sent.body, headers=dict(sent.headers), media_type=sent.media_type)

    return await once(request, gateway, answered)


async def _unit_of_earlier_attempt(ask: Ask, origin: Origin, gateway: Gateway) -> str:
    """The unit of an attempt that this one repeats, so that it meets the same arm."""
    if not origin.retry or origin.digest is None or ask.unit != ask.context.request_id:
        return ask.unit
    return await gateway.store.attempts.unit_of(origin.digest, time.time()) or ask.unit
