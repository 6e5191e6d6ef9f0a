"""Answers as `chat.completion`, and as `chat.completion.chunk`s."""

from typing import Any

from bond_core.types import Candidate, Completion, TextDelta, TokenDetail, ToolCall
from bond_server.forms.answer import bond_view, identity_of, usage_view
from bond_server.ids import COMPLETION_PREFIX
from bond_server.schemas.completion import (
    AnswerFunction,
    AnswerMessage,
    AnswerToolCall,
    ChatCompletion,
    Choice,
    ChoiceLogprobs,
    TopLogprob,
)
from bond_server.services.generation import Answer, Begun


class ChatForm:
    """The chat-completions dialect."""

    def __init__(self, *, return_candidates: bool) -> None:
        self._return_candidates = return_candidates

    def whole(self, answer: Answer) -> ChatCompletion:
        """The answer in one piece."""
        return {
            **identity_of(answer.record, COMPLETION_PREFIX),
            "object": "chat.completion",
            "choices": [_choice(index, c) for index, c in enumerate(answer.returned)],
            "usage": usage_view(answer),
            "bond": bond_view(answer, return_candidates=self._return_candidates),
        }

    def head(self, begun: Begun) -> dict[str, Any]:
        """What every chunk begins with."""
        return {**identity_of(begun.draft, COMPLETION_PREFIX), "object": "chat.completion.chunk"}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice that says who speaks."""
        return _chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, delta: TextDelta) -> dict[str, Any] | None:
        """A choice with what is new; None if nothing is."""
        said: dict[str, Any] = {}
        if delta.text:
            said["content"] = delta.text
        if delta.reasoning:
            said["reasoning"] = delta.reasoning
        if delta.tool_calls:
            said["tool_calls"] = list(delta.tool_calls)
        if not (said or delta.details):
            return None
        return _chunk(index, said, logprobs=_logprobs(delta.details))

    def closing(self, index: int, completion: Completion) -> dict[str, Any]:
        """The choice that says why the answer ended."""
        return _chunk(index, {}, finish_reason=completion.finish_reason)


def _chunk(
    index: int,
    delta: dict[str, Any],
    *,
    logprobs: ChoiceLogprobs | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }


def _choice(index: int, candidate: Candidate) -> Choice:
    completion = candidate.completion
    calls = completion.tool_calls
    message: AnswerMessage = {
        "role": "assistant",
        "content": None if calls and not completion.text else completion.text,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    if completion.reasoning:
        message["reasoning"] = completion.reasoning
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(completion.details),
        "finish_reason": completion.finish_reason,
    }


def _call(call: ToolCall) -> AnswerToolCall:
    function: AnswerFunction = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprobs(details: tuple[TokenDetail, ...]) -> ChoiceLogprobs | None:
    if not details:
        return None
    return {
        "content": [
            {
                **_logprob(detail.token, detail.logprob),
                "top_logprobs": [_logprob(other.token, other.logprob) for other in detail.top],
            }
            for detail in details
        ],
        "refusal": None,
    }


def _logprob(token: str, logprob: float) -> TopLogprob:
    return {"token": token, "logprob": logprob, "bytes": _bytes(token)}


def _bytes(token: str) -> list[int]:
    return list(token.encode(errors="replace"))
