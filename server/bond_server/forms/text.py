"""Answers as `text_completion`, whole and in pieces."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bond_core.types import Candidate, Completion, TextDelta, TokenDetail
from bond_server.forms.answer import bond_view, identity_of, usage_view
from bond_server.ids import TEXT_COMPLETION_PREFIX
from bond_server.schemas.completion import (
    TextChoice,
    TextCompletion,
    TextLogprobs,
)
from bond_server.services.generation import Answer, Begun


class TextForm:
    """The completions dialect. One per request: it counts each choice's characters."""

    def __init__(self, *, return_candidates: bool) -> None:
        self._return_candidates = return_candidates
        self._sent: Counter[int] = Counter()

    def whole(self, answer: Answer) -> TextCompletion:
        """The answer in one piece."""
        return {
            **identity_of(answer.record, TEXT_COMPLETION_PREFIX),
            "object": "text_completion",
            "choices": [text_choice(index, c) for index, c in enumerate(answer.returned)],
            "usage": usage_view(answer),
            "bond": {**bond_view(answer, return_candidates=self._return_candidates)},
        }

    def head(self, begun: Begun) -> dict[str, Any]:
        """What every chunk begins with."""
        return {**identity_of(begun.draft, TEXT_COMPLETION_PREFIX), "object": "text_completion"}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Text has no speaker."""
        return None

    def piece(self, index: int, delta: TextDelta) -> dict[str, Any] | None:
        """A choice with what is new; None if nothing is."""
        if not (delta.text or delta.details):
            return None
        logprobs = _logprobs(delta.details, self._sent[index])
        self._sent[index] += len(delta.text)
        return {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": None,
        }

    def closing(self, index: int, completion: Completion) -> dict[str, Any]:
        """The choice that says why the answer ended."""
        return {
            "index": index,
            "text": "",
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }


def text_choice(index: int, candidate: Candidate) -> TextChoice:
    """A returned continuation."""
    completion = candidate.completion
    return {
        "index": index,
        "text": completion.text,
        "logprobs": _logprobs(completion.details, 0),
        "finish_reason": completion.finish_reason,
    }


def _logprobs(details: Sequence[TokenDetail], offset: int) -> TextLogprobs | None:
    """Lists per quantity; `offset` is where the first token begins, in characters."""
    if not details:
        return None
    offsets: list[int] = []
    for detail in details:
        offsets.append(offset)
        offset += len(detail.token)
    return {
        "tokens": [detail.token for detail in details],
        "token_logprobs": [detail.logprob for detail in details],
        "top_logprobs": [{other.token: other.logprob for other in d.top} for d in details],
        "text_offset": offsets,
    }
