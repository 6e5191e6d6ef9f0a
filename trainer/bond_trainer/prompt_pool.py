"""The pool of prompts that training draws from, whatever they came from.

Each distinct prompt is used at most `max_uses` times, fresh ones first. What was consumed is part
of the checkpoint, so that a restarted learner goes on where it was, and no prompt counts twice.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bond_core.types import Completion, Message
from bond_trainer.curation import Curator, Row
from bond_trainer.curation.identity import digest_of, opening

__all__ = ["PromptPool", "TrainingPrompt", "digest_of", "named_prompts", "opening"]

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
    uses: int = 0


class PromptPool:
    """Prompts waiting for use, in order of arrival; a curator says which come in.

    `counts` are the curator's, and of what it accepted: `used` (a prompt's every use), `exhausted`,
    `withdrawn` (health checks that were recognised late), `deleted` (gone from their source).
    """

    def __init__(self, *, max_uses: int, curator: Curator) -> None:
        self._max_uses = max_uses
        self._curator = curator
        self._entries: list[_Entry] = []
        self._quarantined: dict[str, TrainingPrompt] = {}
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Counter[str]:
        """What became of every prompt offered, by reason."""
        return self._curator.counts + self._counts

    def offer(
        self, prompt: TrainingPrompt, unit: str = "", arrived_at: float = 0.0, key: str = ""
    ) -> bool:
        """Add a prompt unless there is a reason not to, which is counted; whether it was added.

        It may also end the quarantine of earlier ones.
        """
        row = Row(prompt.id, prompt.messages, prompt.num_tokens, unit, arrived_at, key)
        decision = self._curator.offer(row)
        if decision.reason == "accepted":
            self._entries.append(_Entry(prompt))
        elif decision.reason == "quarantined":
            self._quarantined[prompt.id] = prompt
        for prompt_id in decision.released:
            released = self._quarantined.pop(prompt_id, None)
            if released is not None:
                self._entries.append(_Entry(released))
        for prompt_id in decision.dropped:
            self._quarantined.pop(prompt_id, None)
        if decision.withdrawn is not None:
            self._withdraw(decision.withdrawn)
        return decision.reason == "accepted"

    def leave_out(self, counts: Mapping[str, int]) -> None:
        """Count what a source holds and does not offer, by reason."""
        self._counts.update(counts)

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
        self._counts["used"] += len(chosen)
        left = [entry for entry in self._entries if entry.uses < self._max_uses]
        surplus = max(0, sum(entry.uses > 0 for entry in left) - MAX_REUSABLE)
        dropped = {id(e) for e in [entry for entry in left if entry.uses > 0][:surplus]}
        left = [entry for entry in left if id(entry) not in dropped]
        self._counts["exhausted"] += len(self._entries) - len(left)
        self._entries = left
        # an answer that was learned from once says nothing new of the reference's law
        return [e.prompt if e.uses == 1 else replace(e.prompt, logged=()) for e in chosen]

    def state(self) -> dict[str, Any]:
        """For the checkpoint. Prompts are named, not copied: their text stays in their source."""
        return {
            "entries": [[entry.prompt.id, entry.uses] for entry in self._entries],
            "counts": dict(self._counts),
            "curator": self._curator.state(),
            "quarantined": list(self._quarantined),
        }

    def restore(self, state: Mapping[str, Any], prompts: Mapping[str, TrainingPrompt]) -> None:
        """Take up a saved state; `prompts` are those named by it that still exist.

        A prompt that was deleted from its source since then is counted as `deleted`.
        """
        self._curator.restore(state["curator"])
        self._counts = Counter(state["counts"])
        if deleted := sum(prompt_id not in prompts for prompt_id in named_prompts(state)):
            self._counts["deleted"] += deleted
        self._entries = [
            _Entry(prompts[prompt_id], uses)
            for prompt_id, uses in state["entries"]
            if prompt_id in prompts
        ]
        self._quarantined = {
            prompt_id: prompts[prompt_id]
            for prompt_id in state["quarantined"]
            if prompt_id in prompts
        }

    @property
    def names(self) -> list[str]:
        """The ids of all prompts that are held."""
        return [entry.prompt.id for entry in self._entries] + list(self._quarantined)

    def forget(self, gone: Collection[str]) -> None:
        """Drop prompts that were deleted from their source; counted as `deleted`."""
        self._counts["deleted"] += len(set(self.names) & set(gone))
        self._entries = [entry for entry in self._entries if entry.prompt.id not in gone]
        for prompt_id in gone:
            self._quarantined.pop(prompt_id, None)

    def _withdraw(self, prompt_id: str) -> None:
        left = [entry for entry in self._entries if entry.prompt.id != prompt_id]
        if len(left) < len(self._entries) or self._quarantined.pop(prompt_id, None) is not None:
            self._counts["withdrawn"] += 1
        self._entries = left


def named_prompts(state: Mapping[str, Any]) -> list[str]:
    """The ids of the prompts that a saved state needs from its source."""
    return [prompt_id for prompt_id, _ in state["entries"]] + list(state["quarantined"])
