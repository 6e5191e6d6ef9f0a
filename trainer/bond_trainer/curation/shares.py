"""No unit, and no API key, makes up more than its share of what is learned."""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from bond_trainer.curation.identity import unit_key
from bond_trainer.curation.row import Row


class ShareRule:
    """Bounds each unit's part of the rows taken out of the last `window` rows that came here; what
    a unit is, `unit_of` says: who asked, or the API key that they asked by.

    A unit's row is taken while, with it, the unit has at most max(`min_rows`, `max_share` x rows
    taken, this one included, rounded up) of them; rounded up, the unit with the fewest rows is
    always taken. Two provisions keep a log from starving: the window moves
    with every row, taken or not, so that old rows stop counting; and while fewer than
    1 / `max_share` units are in it nothing is refused, since then no split could respect the bound.
    A request that names no unit is a unit of its own, and never refused.
    """

    def __init__(
        self,
        *,
        max_share: float,
        window: int,
        min_rows: int,
        unit_of: Callable[[Row], str] = lambda row: row.unit,
        reason: str = "unit_share",
    ) -> None:
        self._unit_of = unit_of
        self._reason = reason
        self._max_share = max_share
        self._window = window
        self._min_rows = min_rows
        self._clear()

    def _clear(self) -> None:
        self._rows: deque[tuple[str, bool]] = deque()
        self._seen: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._num_taken = 0

    def refuse(self, row: Row) -> str | None:
        """The reason, or None. The row moves the window either way."""
        unit = unit_key(self._unit_of(row) or row.id)
        while len(self._rows) >= self._window:
            self._drop_oldest()
        units = len(self._seen) + (unit not in self._seen)
        limit = max(self._min_rows, _ceil(self._max_share * (self._num_taken + 1)))
        binds = units >= _ceil(1 / self._max_share)
        taken = not binds or self._taken[unit] + 1 <= limit
        self._push(unit, taken)
        return None if taken else self._reason

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {"rows": [[unit, taken] for unit, taken in self._rows]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; the window may have another length now."""
        self._clear()
        for unit, taken in state["rows"]:
            self._push(unit, taken)

    def _push(self, unit: str, taken: bool) -> None:
        self._rows.append((unit, taken))
        self._seen[unit] += 1
        if taken:
            self._taken[unit] += 1
            self._num_taken += 1

    def _drop_oldest(self) -> None:
        unit, taken = self._rows.popleft()
        self._seen[unit] -= 1
        if taken:
            self._taken[unit] -= 1
            self._num_taken -= 1
        for counter in (self._seen, self._taken):
            if counter[unit] == 0:
                del counter[unit]


def _ceil(value: float) -> int:
    """Rounded up, but for what floating point adds (0.1 * 30 is above 3)."""
    return math.ceil(value - 1e-9)
