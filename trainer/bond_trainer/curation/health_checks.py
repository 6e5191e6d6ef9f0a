"""No pings: what machines send to see whether somebody answers.

They are known by their text, if it is on a list, or by their regularity: one unit that sends the
same prompt again and again at equal intervals is a probe, whatever it says.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bond_trainer.curation.identity import normalised, normalised_digest, unit_key
from bond_trainer.curation.row import Row

REPEATS = 5
"""Arrivals of one prompt from one unit, in a row, that are looked at."""
MAX_INTERVAL_RATIO = 1.2
"""Longest of their intervals over the shortest, up to which they count as regular."""
MIN_INTERVAL_S = 5.0
"""A probe waits at least this long; shorter, it may be somebody who draws several answers."""
MAX_TRACKED = 8192
"""Pairs of unit and prompt that are remembered; the one that was silent longest goes first."""

_PUNCTUATION = " .,;:!?…\"'`-_*()[]{}<>/\\"


class PingRule:
    """Refuses a conversation whose only user message is, as a whole, on the list.

    Case, white space and punctuation around the message play no part.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = frozenset(_bare(text) for text in texts)

    def refuse(self, row: Row) -> str | None:
        """`health_check`, or None."""
        asked = [m.content for m in row.messages if m.role == "user"]
        return "health_check" if len(asked) == 1 and _bare(asked[0]) in self._texts else None


class RegularityRule:
    """Refuses the fifth and later of equal prompts that one unit sends at regular intervals.

    The first four were not known for what they are; the one of them that may still wait to be
    learned from is named by `first_of`.
    """

    def __init__(self) -> None:
        self._arrivals: dict[tuple[str, str], tuple[str, list[float]]] = {}
        """By unit and prompt: the first row's id, and the times of the last arrivals."""

    def refuse(self, row: Row) -> str | None:
        """`health_check`, or None. Remembers the arrival."""
        if not row.unit:
            return None
        key = _key(row)
        first, times = self._arrivals.pop(key, (row.id, []))
        times = [*times, row.arrived_at][-REPEATS:]
        self._arrivals[key] = first, times
        while len(self._arrivals) > MAX_TRACKED:
            del self._arrivals[next(iter(self._arrivals))]
        return "health_check" if _regular(times) else None

    def first_of(self, row: Row) -> str:
        """The id of the first row that its unit sent with this prompt."""
        return self._arrivals[_key(row)][0]

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {"arrivals": [[*key, *value] for key, value in self._arrivals.items()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._arrivals = {
            (unit, prompt): (first, list(times)) for unit, prompt, first, times in state["arrivals"]
        }


def _regular(times: Sequence[float]) -> bool:
    if len(times) < REPEATS:
        return False
    gaps = [after - before for before, after in pairwise(times)]
    return min(gaps) >= MIN_INTERVAL_S and max(gaps) <= MAX_INTERVAL_RATIO * min(gaps)


def _bare(text: str) -> str:
    return normalised(text).strip(_PUNCTUATION)


def _key(row: Row) -> tuple[str, str]:
    return unit_key(row.unit), normalised_digest(row.messages)
