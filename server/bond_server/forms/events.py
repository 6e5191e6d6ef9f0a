"""A streamed answer as server-sent events, in the order that clients expect."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Protocol

from bond_core.json_text import dump_json
from bond_core.types import Completion, TextDelta
from bond_server.forms.answer import bond_view, usage_view
from bond_server.schemas.completion import ChatCompletion, TextCompletion
from bond_server.services.generation import Answer, Begun

DONE = "[DONE]"


class Form(Protocol):
    """A dialect's way to tell an answer."""

    def whole(self, answer: Answer) -> ChatCompletion | TextCompletion:
        """The answer in one piece."""
        ...

    def head(self, begun: Begun) -> dict[str, Any]:
        """What every chunk begins with."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first choice of an answer, if the dialect has one."""
        ...

    def piece(self, index: int, delta: TextDelta) -> dict[str, Any] | None:
        """A choice with what is new; None if nothing is."""
        ...

    def closing(self, index: int, completion: Completion) -> dict[str, Any]:
        """The choice that says why the answer ended."""
        ...


async def events(
    form: Form,
    begun: Begun,
    parts: AsyncGenerator[TextDelta | Answer],
    *,
    wants_usage: bool,
    return_candidates: bool,
) -> AsyncGenerator[str]:
    """The data of each event: opening, pieces, closing with `bond`, usage, `[DONE]`.

    The closing comes after the answer's row is committed. What `parts` raises is raised.
    """
    head = form.head(begun) | ({"usage": None} if wants_usage else {})

    def chunk(choice: dict[str, Any], **more: Any) -> str:
        return dump_json(head | {"choices": [choice]} | more)

    opened = False
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, TextDelta):
                if not opened and (opening := form.opening(0)) is not None:
                    yield chunk(opening)
                opened = True
                if (piece := form.piece(0, part)) is not None:
                    yield chunk(piece)
                continue
            for choice in () if opened else buffered(form, part):
                yield chunk(choice)
            bond = bond_view(part, return_candidates=return_candidates)
            for index, candidate in enumerate(part.returned):
                yield chunk(form.closing(index, candidate.completion), bond=bond)
            if wants_usage:
                yield dump_json(head | {"choices": [], "usage": usage_view(part)})
    yield DONE


def buffered(form: Form, answer: Answer, first: int = 0) -> Iterator[dict[str, Any]]:
    """Openings and texts of the answers that were chosen; `first` is the index of the best."""
    for index, candidate in enumerate(answer.returned, first):
        completion = candidate.completion
        whole = TextDelta(
            completion.text,
            details=completion.details,
            tool_calls=tuple(
                {"index": i, **c.as_dict()} for i, c in enumerate(completion.tool_calls)
            ),
            reasoning=completion.reasoning,
        )
        for choice in (form.opening(index), form.piece(index, whole)):
            if choice is not None:
                yield choice
