"""Completions as vLLM's two routes tell them, whole or in pieces, without any input or output."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bond_core.engines.base import Partial
from bond_core.engines.limits import MIN_TEMPERATURE
from bond_core.engines.vllm.connection import RefusedError
from bond_core.engines.vllm.wire import error_message, error_param, unreadable
from bond_core.errors import EngineUnavailableError
from bond_core.json_text import load_json
from bond_core.types import (
    Alternative,
    Completion,
    FinishReason,
    Generation,
    SamplingParams,
    TextDelta,
    TokenDetail,
    ToolCall,
)

JsonObject = Mapping[str, Any]
_GARBAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
"""What reading an answer raises that is not what was asked for."""
_FINISHED: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "repetition": "length",  # cut by `repetition_detection`, not ended by the model
}


def generation(answer: JsonObject, params: SamplingParams, n: int) -> Generation:
    """The completions of an answer, in the order of their index.

    Raises `EngineUnavailableError` if the answer is not what was asked for.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        _refuse_other_indices([int(choice["index"]) for choice in choices])
        completions = [_completion(choice, params) for choice in choices]
        prompt = answer.get("prompt_token_ids") or choices[0]["prompt_token_ids"]
        prompt_token_ids = _token_ids(prompt)
    except _GARBAGE as error:
        raise unreadable(error) from error
    if params.temperature < MIN_TEMPERATURE:
        completions *= n
    if len(completions) != n:
        raise EngineUnavailableError(
            f"vLLM returned {len(completions)} completions where {n} were asked for"
        )
    return Generation(prompt_token_ids, tuple(completions))


def _completion(choice: JsonObject, params: SamplingParams) -> Completion:
    parts = _Parts(params)
    parts.add(choice, choice.get("message"))
    return parts.completion()


class StreamedAnswer:
    """The chunks of one streamed choice, put together.

    `push` takes one event's data and returns what is to be shown; `completion` is there once
    `finished` is.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._parts = _Parts(params)
        self._prompt_told = False
        self.prompt_token_ids: tuple[int, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the chunk that ends the answer has come."""
        return bool(self._parts.finish_reason)

    def push(self, data: str) -> TextDelta | None:
        """Raises `EngineUnavailableError` for what is no chunk, or reports an error, and
        `RefusedError` if that is the request's."""
        fresh = _Parts(self._params)
        try:
            choices, prompt = _chunk(data, begun=bool(self.prompt_token_ids))
            self.prompt_token_ids = prompt or self.prompt_token_ids
            for choice in choices:
                if choice["index"] != 0:
                    raise ValueError("one choice was asked for, and another one is told")
                fresh.add(choice, choice.get("delta"))
            self._parts.join(fresh)
        except _GARBAGE as error:
            raise unreadable(error) from error
        if not (fresh.text or fresh.tool_calls or fresh.reasoning or fresh.details):
            return None
        told = () if self._prompt_told else self.prompt_token_ids
        self._prompt_told = bool(self.prompt_token_ids)
        return TextDelta(
            fresh.text,
            prompt_token_ids=told,
            details=tuple(fresh.details),
            tool_calls=tuple(fresh.tool_calls),
            reasoning=fresh.reasoning,
            num_tokens=len(self._parts.token_ids),
        )

    def completion(self) -> Completion:
        """The whole answer. Raises `EngineUnavailableError` if the stream ended before it."""
        if not self.finished:
            raise EngineUnavailableError("the stream from vLLM broke off before its end")
        try:
            _refuse_no_prompt(self.prompt_token_ids)
            return self._parts.completion()
        except _GARBAGE as error:
            raise unreadable(error) from error


class StreamedChoices:
    """The n choices of one streamed answer; each joins `partial` when it has ended."""

    def __init__(self, params: SamplingParams, n: int, partial: Partial) -> None:
        self._params = params
        self._n = n
        self._parts: dict[int, _Parts] = {}
        self._partial = partial

    def push(self, data: str) -> None:
        """Raises as `StreamedAnswer.push` does."""
        try:
            choices, prompt = _chunk(data, begun=bool(self._partial.prompt_token_ids))
            self._partial.prompt_token_ids = prompt or self._partial.prompt_token_ids
            for choice in choices:
                index = int(choice["index"])
                if not 0 <= index < self._n:  # it would be a candidate when a deadline comes
                    raise ValueError(f"a choice of {self._n} has the index {index}")
                parts = self._parts.setdefault(index, _Parts(self._params))
                parts.add(choice, choice.get("delta"))
                self._partial.unfinished[index] = len(parts.token_ids)
                if parts.finish_reason:
                    _refuse_no_prompt(self._partial.prompt_token_ids)
                    del self._partial.unfinished[index]
                    self._partial.completions[index] = parts.completion()
        except _GARBAGE as error:
            raise unreadable(error) from error

    def generation(self) -> Generation:
        """All of them. Raises `EngineUnavailableError` if the stream ended before that."""
        n, found = self._n, self._partial.completions
        if self._params.temperature < MIN_TEMPERATURE and 0 in found:
            found.update(dict.fromkeys(range(n), found[0]))
        if len(found) != n:
            raise EngineUnavailableError("the stream from vLLM broke off before its end")
        completions = tuple(found[index] for index in range(n))
        return Generation(self._partial.prompt_token_ids, completions)


def _refuse_other_indices(indices: Sequence[int]) -> None:
    """One choice told twice is not two draws."""
    if list(indices) != list(range(len(indices))):
        raise ValueError(f"the choices have the indices {list(indices)}")


def _refuse_no_prompt(prompt_token_ids: tuple[int, ...]) -> None:
    """A row without them would be an answer to nothing, and what is learned from it too."""
    if not prompt_token_ids:
        raise ValueError("there are no prompt_token_ids")


def _chunk(data: str, *, begun: bool) -> tuple[Sequence[JsonObject], tuple[int, ...]]:
    """Choices of an event, and the prompt's tokens if it has them.

    vLLM looks at the parameters of a stream when its status has been sent: what it refuses is an
    event with the status that it would have been, before all others.
    """
    chunk: Any = load_json(data)
    if "error" in chunk:
        status: Any = chunk["error"].get("code") if isinstance(chunk["error"], dict) else None
        if not begun and isinstance(status, int) and 400 <= status < 500:
            raise RefusedError(status, error_message(chunk), error_param(chunk))
        broke_off = "vLLM broke off the answer"
        raise EngineUnavailableError(
            f"{broke_off}: {error_message(chunk) or data[:200]}", f"{broke_off} and said why"
        )
    choices: Sequence[JsonObject] = chunk["choices"]
    prompt = chunk.get("prompt_token_ids")
    for choice in choices:
        prompt = prompt or choice.get("prompt_token_ids")
    return choices, _token_ids(prompt or ())


def _token_ids(told: Sequence[int]) -> tuple[int, ...]:
    """Ids as rows can keep them, in one pass. Raises TypeError or OverflowError for others."""
    return tuple(array("I", told))


@dataclass(slots=True)
class _Parts:
    """What the choices of one answer add up to."""

    params: SamplingParams
    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    details: list[TokenDetail] = field(default_factory=list[TokenDetail])
    tool_calls: list[JsonObject] = field(default_factory=list[JsonObject])
    finish_reason: str = ""

    def add(self, choice: JsonObject, turn: JsonObject | None) -> None:
        """Add a choice; `turn` is its message or delta, None where the route gives plain text."""
        said: JsonObject = {"content": choice["text"]} if turn is None else turn
        content, reasoning = said.get("content") or "", said.get("reasoning") or ""
        (content + reasoning).encode()  # half a surrogate pair is no text, and cannot be sent on
        self.text += content
        self.reasoning += reasoning
        if calls := said.get("tool_calls"):
            _whole_calls(calls)  # its pieces are told before the last one is here
            orjson.dumps(calls)  # refuses what has no form in UTF-8, wherever it is
            self.tool_calls += calls
        self.token_ids += _token_ids(choice.get("token_ids") or ())
        logprobs: JsonObject = choice.get("logprobs") or {}
        known, detailed = len(self.logprobs), len(self.details)
        if "content" in logprobs:
            entries: Sequence[JsonObject] = logprobs["content"] or ()
            self.logprobs += [float(entry["logprob"]) for entry in entries]
            if self.params.top_logprobs is not None:
                self.details += [_chat_detail(e, self.params.top_logprobs) for e in entries]
        elif logprobs:
            self.logprobs += map(float, logprobs["token_logprobs"])
            if self.params.top_logprobs is not None:
                self.details += _text_details(logprobs, self.params.top_logprobs)
        _refuse_untellable(self.logprobs[known:], self.details[detailed:])
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def join(self, fresh: "_Parts") -> None:
        """Add what came after these."""
        self.text += fresh.text
        self.reasoning += fresh.reasoning
        self.token_ids += fresh.token_ids
        self.logprobs += fresh.logprobs
        self.details += fresh.details
        self.tool_calls += fresh.tool_calls
        self.finish_reason = fresh.finish_reason or self.finish_reason

    def completion(self) -> Completion:
        """Raises `ValueError` if the parts do not fit together."""
        logprobs = self.logprobs
        if len(self.token_ids) != len(logprobs) or not logprobs:
            raise ValueError(f"{len(self.token_ids)} tokens, {len(logprobs)} log-probabilities")
        if self.finish_reason not in _FINISHED:
            raise ValueError(f"finish_reason {self.finish_reason!r}")
        if self.params.temperature < MIN_TEMPERATURE:  # the law of greedy decoding is a point
            logprobs = [0.0] * len(logprobs)
        return Completion(
            self.text,
            tuple(self.token_ids),
            tuple(logprobs),
            _FINISHED[self.finish_reason],
            tuple(self.details),
            _whole_calls(self.tool_calls),
            self.reasoning,
        )


def _chat_detail(entry: JsonObject, count: int) -> TokenDetail:
    others: Sequence[JsonObject] = entry.get("top_logprobs") or ()
    told = [(str(other["token"]), float(other["logprob"])) for other in others]
    return TokenDetail(str(entry["token"]), float(entry["logprob"]), _likeliest(told, count))


def _text_details(logprobs: JsonObject, count: int) -> list[TokenDetail]:
    """Of the form of the route for raw text, which has a list per quantity."""
    tokens: Sequence[str] = logprobs["tokens"]
    values: Sequence[float] = logprobs["token_logprobs"]
    tops: Sequence[Mapping[str, float] | None] = logprobs.get("top_logprobs") or [None] * len(
        tokens
    )
    return [
        TokenDetail(token, float(value), _likeliest(list((top or {}).items()), count))
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def _likeliest(told: Sequence[tuple[str, float]], count: int) -> tuple[Alternative, ...]:
    """vLLM tells the drawn token first, and beside those that were asked for."""
    order = sorted(told, key=lambda item: -item[1])
    return tuple(Alternative(token, logprob) for token, logprob in order[:count])


def _refuse_untellable(logprobs: Sequence[float], details: Sequence[TokenDetail]) -> None:
    """Numbers that JSON has no form for, and tokens that UTF-8 has none for. vLLM tells -9999 for
    a law's zeros."""
    total = sum(logprobs)  # not finite as soon as one of them is not
    if details:
        tokens = [detail.token for detail in details]
        for detail in details:
            total += detail.logprob
            for other in detail.top:
                total += other.logprob
                tokens.append(other.token)
        "".join(tokens).encode()
    if not math.isfinite(total):
        raise ValueError("a log-probability is not finite")


def _whole_calls(pieces: Sequence[JsonObject]) -> tuple[ToolCall, ...]:
    """Tool calls from their pieces: those of one `index` belong together."""
    found: dict[int, list[str]] = {}
    for position, piece in enumerate(pieces):
        call = found.setdefault(int(piece.get("index", position)), ["", "", ""])
        function: JsonObject = piece.get("function") or {}
        call[0] = call[0] or str(piece.get("id") or "")
        call[1] = call[1] or str(function.get("name") or "")
        call[2] += str(function.get("arguments") or "")
    return tuple(ToolCall(*found[index]) for index in sorted(found))
