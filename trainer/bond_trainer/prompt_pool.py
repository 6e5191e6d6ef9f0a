"""The pool of prompts that training draws from, whatever they came from.

Each distinct prompt is used at most `max_uses` times, fresh ones first. What was consumed is part
of the checkpoint, so that a restarted learner goes on where it was, and no prompt counts twice.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bond_core.holdout import Split, split_of
from bond_core.types import Completion, Message

MAX_REMEMBERED = 200_000
"""Digests of retired prompts that are kept, newest last, to recognise repetitions."""
MAX_REUSABLE = 16_384
"""Prompts kept for another use. Where traffic brings fresh ones faster than training uses them,
the others would wait for ever: the oldest go."""


@dataclass(frozen=True, slots=True)
class TrainingPrompt:
    """A prompt that may be learned from."""

    id: str
    """Names it in its source: the log row's id, or the line of a file."""
    messages: tuple[Message, ...]
    num_tokens: int
    logged: tuple[Completion, ...] = ()
    """Candidates of the row that are independent draws of the reference at standard sampling, if
    all of them are."""


@dataclass(slots=True)
class _Entry:
    prompt: TrainingPrompt
    digest: str
    uses: int = 0


class PromptPool:
    """Prompts waiting for use, in order of arrival.

    `counts` tells what became of every prompt offered: `accepted`, or left out as `duplicate`,
    `too_long`, `held_out`, `empty`; and `used`, `exhausted`.
    """

    def __init__(
        self, *, max_uses: int, max_prompt_tokens: int, held_out: Collection[str] = ()
    ) -> None:
        self._max_uses = max_uses
        self._max_prompt_tokens = max_prompt_tokens
        self._held_out = frozenset(held_out)
        self._entries: list[_Entry] = []
        self._known: dict[str, None] = {}
        self.counts: Counter[str] = Counter()

    def offer(self, prompt: TrainingPrompt) -> bool:
        """Add a prompt unless there is a reason not to, which is counted."""
        reason, digest = self._judge(prompt)
        self.counts[reason] += 1
        if reason != "accepted":
            return False
        self._known[digest] = None
        while len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._entries.append(_Entry(prompt, digest))
        return True

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_fresh(self) -> int:
        """Prompts never used."""
        return sum(entry.uses == 0 for entry in self._entries)

    def take(self, count: int) -> list[TrainingPrompt]:
        """The `count` least used prompts, first come first; none at all if the pool has fewer.

        A smaller batch would weigh as much as a whole one in the optimiser. Taking counts as one
        use; a prompt leaves the pool with its last.
        """
        if len(self) < count:
            return []
        chosen = sorted(self._entries, key=lambda entry: entry.uses)[:count]
        for entry in chosen:
            entry.uses += 1
        self.counts["used"] += len(chosen)
        left = [entry for entry in self._entries if entry.uses < self._max_uses]
        surplus = max(0, sum(entry.uses > 0 for entry in left) - MAX_REUSABLE)
        dropped = {id(e) for e in [entry for entry in left if entry.uses > 0][:surplus]}
        left = [entry for entry in left if id(entry) not in dropped]
        self.counts["exhausted"] += len(self._entries) - len(left)
        self._entries = left
        # an answer that was learned from once says nothing new of the reference's law
        return [e.prompt if e.uses == 1 else replace(e.prompt, logged=()) for e in chosen]

    def state(self) -> dict[str, Any]:
        """For the checkpoint. Prompts are named, not copied: their text stays in their source."""
        return {
            "entries": [[entry.prompt.id, entry.uses] for entry in self._entries],
            "known": list(self._known),
            "counts": dict(self.counts),
        }

    def restore(self, state: Mapping[str, Any], prompts: Mapping[str, TrainingPrompt]) -> None:
        """Take up a saved state; `prompts` are those named by it that still exist.

        A prompt that was deleted from its source since then is counted as `deleted`.
        """
        self._known = dict.fromkeys(state["known"])
        self.counts = Counter(state["counts"])
        self._entries = []
        for prompt_id, uses in state["entries"]:
            prompt = prompts.get(prompt_id)
            if prompt is None:
                self.counts["deleted"] += 1
            else:
                self._entries.append(_Entry(prompt, digest_of(prompt.messages), uses))

    def _judge(self, prompt: TrainingPrompt) -> tuple[str, str]:
        if not prompt.messages:
            return "empty", ""
        digest = digest_of(prompt.messages)
        if split_of(prompt.messages) is not Split.TRAIN or opening(prompt.messages) in (
            self._held_out
        ):
            return "held_out", digest
        if prompt.num_tokens > self._max_prompt_tokens:
            return "too_long", digest
        return ("duplicate" if digest in self._known else "accepted"), digest


def digest_of(messages: Sequence[Message]) -> str:
    """Identifies a prompt; 16 hexadecimal digits."""
    text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def opening(messages: Sequence[Message]) -> str:
    """The first user message, white space collapsed: what the held-out split goes by."""
    first = next((m for m in messages if m.role == "user"), messages[0])
    return " ".join(first.content.split())
