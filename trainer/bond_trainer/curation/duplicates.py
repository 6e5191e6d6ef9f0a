"""Each prompt once: equal but for case and white space.

Near-duplicates are kept: a number or a name that differs is a question of its own. Floods of them
are the business of `spikes.py`.
"""

from collections.abc import Mapping
from typing import Any

from bond_trainer.curation.identity import normalised_digest
from bond_trainer.curation.row import Row

MAX_REMEMBERED = 200_000
"""Prompts by which repetitions are recognised; beyond, the oldest are forgotten."""


class DuplicateRule:
    """Refuses what was taken before."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}

    def refuse(self, row: Row) -> str | None:
        """`duplicate`, or None."""
        return "duplicate" if normalised_digest(row.messages) in self._known else None

    def remember(self, digest: str) -> None:
        """A prompt was taken: the next of its kind is a duplicate."""
        self._known[digest] = None
        while len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]

    def forget(self, digest: str) -> None:
        """It was dropped after all: it may come again."""
        self._known.pop(digest, None)

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {"known": list(self._known)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._known = dict.fromkeys(state["known"])
