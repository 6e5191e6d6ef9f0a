"""Several prompts in one request, each answered, logged and charged like one of its own."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from fastapi import Request, Response

from bond_core.errors import InvalidRequestError, PromptTooLongError
from bond_core.json_text import dump_json
from bond_core.types import Message
from bond_server.access.bounded_body import refuse_too_many
from bond_server.errors import error_event
from bond_server.forms.prompts import events_of, headers_of, whole_headers, whole_of
from bond_server.gateway import Gateway
from bond_server.routes.disconnect import CLIENT_CLOSED, until_disconnect
from bond_server.routes.once import KEY_HEADER
from bond_server.schemas.openai import TextCompletionRequest
from bond_server.services.admission import Line
from bond_server.services.ask import Ask
from bond_server.services.generation import Answer, Begun
from bond_server.sse import EventStream


async def respond_to_each(
    body: TextCompletionRequest, request: Request, gateway: Gateway, ask: Ask
) -> Response:
    """Answer every prompt of a body; `ask` is that of the first.

    Nothing is drawn if one of them is wrong. If one fails, the others are cancelled, and its error
    is the request's.
    """
    refuse_too_many(len(body.prompt), gateway.config.access, "prompt")
    if request.headers.get(KEY_HEADER) is not None:
        raise InvalidRequestError(
            f"{KEY_HEADER} is taken with one prompt per request: send each prompt with a key of "
            "its own, or all without",
            param="Idempotency-Key",
        )
    asks = [_of_prompt(ask, i, text) for i, text in enumerate(body.conversations())]
    begun = await until_disconnect(request, gateway.generation.begin_all(asks))
    if begun is None:
        return Response(status_code=CLIENT_CLOSED)
    told = partial(_events, body, gateway, begun)
    if body.stream:
        headers = {**headers_of(begun), "x-bond-stream": "buffered"}
        return EventStream(
            told(),
            headers,
            partial(error_event, request),
            gateway.config.server.keep_alive_s,
            gateway.config.server.send_timeout_s,
            may_be_refused=lambda: all(one.draft.queue_s is None for one in begun),
        )
    answers = await until_disconnect(request, _all(gateway, begun))
    if answers is None:
        return Response(status_code=CLIENT_CLOSED)
    whole = whole_of(answers, return_candidates=body.bond.return_candidates)
    headers = {**whole_headers(answers), **headers_of(begun)}
    return Response(dump_json(whole), headers=headers, media_type="application/json")


def _of_prompt(ask: Ask, position: int, messages: Sequence[Message]) -> Ask:
    """The ask of one prompt; its attempts are told from those of the others."""
    origin = ask.origin
    if origin.digest is not None and position:
        digest = hashlib.sha256(f"{origin.digest}/{position}".encode()).hexdigest()[:32]
        origin = replace(origin, digest=digest)
    return replace(ask, messages=tuple(messages), origin=origin)


async def _events(
    body: TextCompletionRequest, gateway: Gateway, begun: Sequence[Begun]
) -> AsyncGenerator[str]:
    async with _answering(gateway, begun) as tasks:

        async def in_order() -> AsyncGenerator[Answer]:
            whole = asyncio.gather(*tasks)
            whole.add_done_callback(lambda done: done.cancelled() or done.exception())
            for task in tasks:
                await asyncio.wait({task, whole}, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    await whole  # a later one has failed, and this one is not worth waiting for
                yield await task

        data = events_of(
            begun,
            in_order(),
            wants_usage=body.wants_usage,
            return_candidates=body.bond.return_candidates,
        )
        async for event in data:
            yield event


async def _all(gateway: Gateway, begun: Sequence[Begun]) -> list[Answer]:
    async with _answering(gateway, begun) as tasks:
        return await asyncio.gather(*tasks)


async def _answer(gateway: Gateway, begun: Begun, position: int) -> Answer:
    try:
        return await gateway.generation.answer(begun)
    except PromptTooLongError as error:
        error.param = f"prompt.{position}"
        raise


@asynccontextmanager
async def _answering(
    gateway: Gateway, begun: Sequence[Begun]
) -> AsyncGenerator[list[asyncio.Task[Answer]]]:
    """The answers on their way, as many candidates at once as one request may draw; those that are
    still on it at the end are cancelled."""
    line = Line(max(gateway.config.arms.max_best_of // begun[0].plan.best_of, 1))
    tasks = [
        asyncio.create_task(_answer(gateway, replace(one, line=line), position))
        for position, one in enumerate(begun)
    ]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
