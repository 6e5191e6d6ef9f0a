"""A function of the deployment's own that takes out of rows what must not be kept.

It is given the texts of a row before that is stored; the client gets its answer as it was drawn. A
row whose words it changed is kept without tokens, which would spell them, and is not learned from;
a row that it could not be applied to is kept without content. Values of `metadata` are words too,
but no token spells them. What a row is found and deleted by is not given to it: `user`,
`safety_identifier` and the unit, under other names of which nobody could have it deleted.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from bond_core.errors import ModelLoadError
from bond_core.rewards.function import load_function
from bond_core.rewards.user_thread import Raised, UserThread
from bond_core.store.records import CompletionRecord
from bond_core.types import Candidate, Message, ToolCall

logger = logging.getLogger(__name__)


class RedactionError(Exception):
    """The function failed; its own words are left out, because they may quote the row's."""


class Redactor:
    """Runs the function on a thread of its own, one row at a time."""

    def __init__(self, target: str, function: Callable[..., Any], timeout_s: float) -> None:
        self._target = target
        self._function = function
        self._timeout_s = timeout_s
        self._worker = UserThread()

    async def redacted(self, record: CompletionRecord) -> CompletionRecord:
        """The row as it may be kept. Raises `RedactionError`."""
        words, pairs = list(_texts(record)), record.origin.metadata
        after = await self._call([*words, *pairs.values()])
        told = dict(zip(pairs, after[len(words) :], strict=True))
        if told != pairs:
            record = replace(record, origin=replace(record.origin, metadata=told))
        if after[: len(words)] == words:
            return record
        return _without_tokens(_with_texts(record, iter(after)))

    async def redacted_pairs(self, pairs: Mapping[str, str]) -> dict[str, str]:
        """Metadata as it may be kept. Raises `RedactionError`."""
        return dict(zip(pairs, await self._call(list(pairs.values())), strict=True))

    async def close(self) -> None:
        """End the thread."""
        self._worker.close()

    async def _call(self, texts: list[str]) -> list[str]:
        given = list(texts)
        try:
            returned = await self._worker.call(lambda: self._function(given), self._timeout_s)
        except TimeoutError:
            raise RedactionError(
                f"{self._target} took longer than {self._timeout_s:g} s (store.redact_timeout_s)"
            ) from None
        if isinstance(returned, Raised):
            raise RedactionError(f"{self._target} raised {type(returned.error).__name__}") from None
        if not isinstance(returned, list):
            raise RedactionError(f"{self._target} returned no list but {type(returned).__name__}")
        found = cast(list[object], returned)
        if len(found) != len(texts) or not all(isinstance(text, str) for text in found):
            raise RedactionError(
                f"{self._target} was given {len(texts)} texts and has to return as many strings; "
                f"it returned {len(found)} values"
            )
        return cast(list[str], found)


def load_redactor(target: str, timeout_s: float) -> Redactor | None:
    """The redactor of `store.redact`; None if none is set.

    Raises `ModelLoadError` if the function cannot be imported.
    """
    if not target:
        return None
    try:
        return Redactor(target, load_function(target), timeout_s)
    except ModelLoadError as error:
        words = error.message.replace("reward function", "function")
        raise ModelLoadError(f"store.redact: {words}") from error


def _texts(record: CompletionRecord) -> Iterator[str]:
    """Every text of the row that is somebody's words, in one order."""
    for message in record.messages:
        yield message.content
        yield message.name or ""
        yield message.reasoning
        yield from (call.arguments for call in message.tool_calls)
    for candidate in record.candidates:
        yield candidate.completion.text
        yield candidate.completion.reasoning
        yield from (call.arguments for call in candidate.completion.tool_calls)
    yield record.error or ""
    yield from record.params.stop
    yield from _strings(record.params.further)


def _strings(value: object) -> Iterator[str]:
    """The strings in a JSON value, names of fields left out: tools and documents are words too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in cast(Mapping[str, object], value).values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _strings(item)


def _with_strings(value: Any, texts: Iterator[str]) -> Any:
    """The value with other strings, given in the order of `_strings`."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, Mapping):
        fields = cast(Mapping[str, Any], value)
        return {name: _with_strings(item, texts) for name, item in fields.items()}
    if isinstance(value, list):
        return [_with_strings(item, texts) for item in cast(list[Any], value)]
    return value


def _with_texts(record: CompletionRecord, texts: Iterator[str]) -> CompletionRecord:
    """The row with other texts, given in the order of `_texts`."""

    def calls(given: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        return tuple(replace(call, arguments=next(texts)) for call in given)

    messages: list[Message] = []
    for message in record.messages:
        content, name, reasoning = next(texts), next(texts) or None, next(texts)
        turn = replace(message, content=content, name=name, reasoning=reasoning)
        messages.append(replace(turn, tool_calls=calls(message.tool_calls)))
    candidates: list[Candidate] = []
    for candidate in record.candidates:
        text, reasoning = next(texts), next(texts)
        completion = replace(
            candidate.completion,
            text=text,
            reasoning=reasoning,
            tool_calls=calls(candidate.completion.tool_calls),
        )
        candidates.append(replace(candidate, completion=completion))
    error = next(texts) or None
    stop = tuple(next(texts) for _ in record.params.stop)
    further = _with_strings(record.params.further, texts)
    return replace(
        record,
        messages=tuple(messages),
        candidates=tuple(candidates),
        error=error,
        params=replace(record.params, stop=stop, further=further),
    )


def _without_tokens(record: CompletionRecord) -> CompletionRecord:
    """Token ids replaced by zeros, one for each; marked, and not to be learned from."""
    candidates = tuple(
        replace(
            candidate,
            completion=replace(
                candidate.completion, token_ids=(0,) * len(candidate.completion.token_ids)
            ),
        )
        for candidate in record.candidates
    )
    return replace(
        record,
        candidates=candidates,
        prompt_token_ids=(0,) * len(record.prompt_token_ids),
        may_train=False,
        redacted=True,
    )
