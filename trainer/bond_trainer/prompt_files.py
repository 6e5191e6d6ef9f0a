"""Files of prompts: JSON lines of a user's own, or what a gateway's `/v1/export` wrote."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from bond_core.errors import ConfigError
from bond_core.holdout import Split, split_of
from bond_core.store.records import CompletionStatus
from bond_core.types import Message, Role

logger = logging.getLogger(__name__)

_ROLES = tuple(role for role in get_args(Role) if role != "prompt")
"""Of turns: raw text, which stands for a whole conversation, is not trained for."""

_UNANSWERED = frozenset(get_args(CompletionStatus)) - {"ok"}
"""Of the log's rows. Other words in a `status` are a data set's own, and mean nothing here."""

WITHHOLDING_KEYS = ("may_train", "redacted", "status")
"""Keys of an exported row that may keep it from being learned from."""

LEFT_OUT: Mapping[str, str] = {
    "no_consent": "`may_train` is false",
    "redacted": "`redacted` is true",
    "unanswered": f"`status` is {' or '.join(sorted(_UNANSWERED))}",
    "raw_text": "raw text of /v1/completions, which is no conversation",
    "tool_calls": "a turn calls tools, whose definitions a file of prompts has not",
}
"""Why a line is not a prompt although nothing is wrong with it."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What a file of prompts holds."""

    path: Path
    by_line: Mapping[int, tuple[Message, ...]]
    """Conversations by the number of their line, from 1."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Lines that are none, by the keys of `LEFT_OUT`."""

    def say_left_out(self) -> None:
        """Log how many lines were left out and why, if any were."""
        if self.left_out:
            logger.warning(
                "left out of %s: %s; %d lines stay",
                self.path,
                explain(self.left_out),
                len(self.by_line),
            )


def explain(left_out: Mapping[str, int]) -> str:
    """The counts in words."""
    return ", ".join(
        f"{count} {'line' if count == 1 else 'lines'} ({LEFT_OUT[reason]})"
        for reason, count in left_out.items()
    )


def read_prompt_file(path: Path) -> PromptFile:
    """The conversations of a JSON-lines file, in order.

    Each line is `{"prompt": "text"}` or `{"messages": [{"role", "content"}, …]}`. Of other keys
    those count that an export has: lines whose `may_train` is false, whose `redacted` is true or
    whose `status` is that of a failed request are left out, as are raw text and conversations that
    call tools; the rest is ignored, since data sets carry more. Raises `ConfigError` naming the
    line that is neither, and for a file without a prompt.
    """
    try:
        lines = path.read_text().split("\n")  # splitlines would also split at U+2028
    except OSError as error:
        raise ConfigError(f"cannot read prompts from {path}: {error.strerror or error}") from None
    by_line: dict[int, tuple[Message, ...]] = {}
    left_out: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parsed = _parse(line, f"{path}, line {number}")
        if isinstance(parsed, str):
            left_out[parsed] += 1
        else:
            by_line[number] = parsed
    if not by_line:
        why = f": left out are {explain(left_out)}" if left_out else ""
        raise ConfigError(f"{path} holds no prompts{why}")
    return PromptFile(path, by_line, left_out)


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
    """The conversations of a file, in order; see `read_prompt_file`. Says what was left out."""
    file = read_prompt_file(path)
    file.say_left_out()
    return list(file.by_line.values())


def prompts_of_split(path: Path, split: Split) -> list[tuple[Message, ...]]:
    """The file's conversations that fall on one side of the held-out split."""
    found = read_prompt_file(path).by_line.values()
    return [messages for messages in found if split_of(messages) is split]


def _parse(line: str, where: str) -> tuple[Message, ...] | str:
    """The conversation of a line, or why it is left out."""
    expected = 'expected {"prompt": "text"} or {"messages": [{"role": …, "content": …}]}'
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error}); {expected}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {expected}")
    row = cast(dict[str, Any], value)
    if reason := _withheld(row):
        return reason
    if isinstance(row.get("prompt"), str):
        return (Message("user", row["prompt"]),)
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ConfigError(f"{where}: {expected}")
    turns = cast(Sequence[object], messages)
    return _not_trained_for(turns) or tuple(_message(item, where) for item in turns)


def _withheld(row: Mapping[str, Any]) -> str | None:
    if row.get("may_train") is False:
        return "no_consent"
    if row.get("redacted") is True:
        return "redacted"
    status = row.get("status")
    return "unanswered" if isinstance(status, str) and status in _UNANSWERED else None


def _not_trained_for(turns: Sequence[object]) -> str | None:
    forms = [cast(dict[str, Any], turn) for turn in turns if isinstance(turn, dict)]
    if any(form.get("role") == "prompt" for form in forms):
        return "raw_text"
    if any(form.get("role") == "assistant" and form.get("tool_calls") for form in forms):
        return "tool_calls"
    return None


def _message(item: object, where: str) -> Message:
    if isinstance(item, dict):
        values = cast(dict[str, Any], item)
        role, content = values.get("role"), values.get("content")
        if role in _ROLES and isinstance(content, str):
            return Message(cast(Role, role), content)
    raise ConfigError(
        f"{where}: a message needs a role of {', '.join(_ROLES)} and a text as content"
    )
