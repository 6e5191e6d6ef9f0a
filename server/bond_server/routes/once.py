"""Requests that come twice: `Idempotency-Key`, and the SDKs' own retries.

A key is an RFC 8941 string (`"8e03978e"`) as the IETF's draft of the header has it, or the same
without its quotation marks, which is what most clients send. It belongs to its caller. Statuses
follow the draft (draft-ietf-httpapi-idempotency-key-header): 422 for a key that was used with
another request, 409 while the first one runs, which SDKs retry.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import cast

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from bond_core.errors import InvalidRequestError
from bond_core.store.records import Origin
from bond_core.store.settlement import KeptAnswer
from bond_core.types import TextDelta
from bond_server.context import CONTEXT_KEY, RequestContext
from bond_server.errors import (
    ANSWER_NOT_KEPT_CODE,
    KEY_IN_FLIGHT_CODE,
    KEY_REUSED_CODE,
    error_json,
)
from bond_server.gateway import Gateway
from bond_server.ids import COMPLETION_PREFIX
from bond_server.routes.disconnect import CLIENT_CLOSED, until_disconnect
from bond_server.schemas.completion import ErrorBody
from bond_server.schemas.openai import SamplingBody
from bond_server.services.generation import Answer
from bond_server.services.idempotency import (
    Claim,
    InFlight,
    Replay,
    Reused,
    attempt_digest,
    fingerprint_of_request,
    scope_of,
)

KEY_HEADER = "idempotency-key"
UNIT_HEADER = "x-bond-unit"
REPLAYED_HEADER = "x-bond-replayed"
RETRY_HEADER = "x-stainless-retry-count"
RETRY_AFTER_S = 1
MAX_RETRY = 1000

_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"')
_BARE = re.compile(r"[!#-~][!-~]{0,254}")


async def once(
    request: Request, gateway: Gateway, answer: Callable[[Claim | None], Awaitable[Response]]
) -> Response:
    """What `answer` returns, or what it returned before under the request's key.

    `answer` is called with the claim that its completion's row has to end; a key whose request
    fails is free again.
    """
    given = request.headers.get(KEY_HEADER)
    if given is None:
        return await answer(None)
    fingerprint = fingerprint_of_request(request.url.path, await request.body())
    scope = scope_of(caller_of(request), parse_key(given))
    begun = await until_disconnect(request, gateway.idempotency.begin(scope, fingerprint))
    counted = gateway.metrics.keeping.idempotent_requests
    match begun:
        case None:
            return Response(status_code=CLIENT_CLOSED)
        case Replay(completion_id, kept):
            counted.labels("replayed" if kept else "not_kept").inc()
            return _not_kept(completion_id) if kept is None else _replayed(kept)
        case Reused():
            counted.labels("reused").inc()
            return _reused()
        case InFlight():
            counted.labels("in_flight").inc()
            return _in_flight()
        case Claim():
            counted.labels("first").inc()
            return await _first(gateway, begun, answer)


async def origin_of(body: SamplingBody, request: Request) -> Origin:
    """What a request says of itself; its attempts have a digest if its client numbers them."""
    retry = request.headers.get(RETRY_HEADER, "")
    numbered = retry.isascii() and retry.isdigit() and len(retry) <= len(str(MAX_RETRY))
    digest = None
    if numbered:
        caller, path = caller_of(request), request.url.path
        unit = request.headers.get(UNIT_HEADER, "")
        digest = attempt_digest(caller, path, unit, await request.body())
    return Origin(
        user=body.user,
        safety_identifier=body.safety_identifier,
        metadata=body.metadata or {},
        digest=digest,
        retry=min(int(retry), MAX_RETRY) if numbered else 0,
    )


def caller_of(request: Request) -> str:
    """Whose keys these are: the API key that the request came by, if the gateway has any."""
    context: RequestContext = request.scope[CONTEXT_KEY]
    return context.caller.key_id or ""


def parse_key(given: str) -> str:
    """The key of a header, with or without quotation marks. Raises `InvalidRequestError`."""
    if quoted := _QUOTED.fullmatch(given):
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if _BARE.fullmatch(given):
        return given
    raise InvalidRequestError(
        "Idempotency-Key must be 1 to 255 visible ASCII characters, such as a UUID, with or "
        "without quotation marks around them",
        param="Idempotency-Key",
    )


async def kept_parts(
    parts: AsyncGenerator[TextDelta | Answer],
    claim: Claim,
    tell: Callable[[AsyncGenerator[TextDelta | Answer]], Awaitable[KeptAnswer]],
) -> AsyncGenerator[TextDelta | Answer]:
    """The same parts, remembered, so that `tell` can keep the whole stream with the answer's row;
    the answer is the one that was kept."""
    said: list[TextDelta] = []

    async def again(answer: Answer) -> AsyncGenerator[TextDelta | Answer]:
        for piece in said:
            yield piece
        yield answer

    claim.render = lambda answer: tell(again(answer))
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, TextDelta):
                said.append(part)
                yield part
            else:
                yield cast(Answer, claim.answer)


class _Ending(Response):
    """A response with something to do after its last byte, or after its client has gone."""

    def __init__(self, response: Response, end: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._response = response
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            await self._end()


async def _first(
    gateway: Gateway, claim: Claim, answer: Callable[[Claim | None], Awaitable[Response]]
) -> Response:
    try:
        response = await answer(claim)
    except BaseException:
        await gateway.idempotency.end(claim)
        raise
    return _Ending(response, lambda: gateway.idempotency.end(claim))


def _replayed(kept: KeptAnswer) -> Response:
    headers = {**kept.headers, REPLAYED_HEADER: "true"}
    return Response(kept.body, headers=headers, media_type=kept.media_type)


def _not_kept(completion_id: str) -> Response:
    message = (
        f"the request with this Idempotency-Key was answered as {COMPLETION_PREFIX}"
        f"{completion_id}, and its words are not kept here; to have it answered again, send a new "
        "key"
    )
    # the SDKs retry every 409 unless they are told otherwise
    headers = {"x-should-retry": "false"}
    return _error(HTTPStatus.CONFLICT, message, ANSWER_NOT_KEPT_CODE, headers)


def _reused() -> Response:
    message = (
        "this Idempotency-Key was used with another request; send a new key with every new "
        "request, and the same body with a repeated one"
    )
    return _error(HTTPStatus.UNPROCESSABLE_ENTITY, message, KEY_REUSED_CODE, {})


def _in_flight() -> Response:
    message = "the first request with this Idempotency-Key is still being answered; try again"
    headers = {"retry-after": str(RETRY_AFTER_S), "retry-after-ms": str(RETRY_AFTER_S * 1000)}
    return _error(HTTPStatus.CONFLICT, message, KEY_IN_FLIGHT_CODE, headers)


def _error(status: HTTPStatus, message: str, code: str, headers: dict[str, str]) -> Response:
    body = ErrorBody(
        message=message, type="invalid_request_error", param="Idempotency-Key", code=code
    )
    return error_json(body, status, headers)
