"""What floods in suddenly waits: a template or a unit that is abnormally frequent of late.

The last `window` rows are compared with the BASELINE_WINDOWS times as many before them. A key (the
template of a row, or its unit) spikes while it makes up at least `min_share` of the recent rows and
`factor` times its share of the earlier ones. Its rows are then held. HOLD_WINDOWS windows of rows
later each is decided: released if the key still makes up `min_share` of the recent rows (the
traffic has changed, and lasts), dropped if not (it was a burst). Lasting traffic becomes its own
baseline, so that it soon stops being held.

Before there are `window` earlier rows nothing is held: there is nothing to compare with. The rows
by which a spike becomes one have passed.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from bond_trainer.curation.identity import normalised_digest, template_of, unit_key
from bond_trainer.curation.row import Row

BASELINE_WINDOWS = 8
HOLD_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class Held:
    """A row in quarantine."""

    id: str
    digest: str
    """Of its prompt, normalised."""
    key: str
    """What spiked."""
    due: int
    """The number of rows seen at which it is decided."""


class SpikeRule:
    """Holds the rows of a spike, in the order of their arrival."""

    def __init__(self, *, window: int, min_share: float, factor: float) -> None:
        self._window = window
        self._min_share = min_share
        self._factor = factor
        self._num_seen = 0
        self._recent = _Window(window)
        self._baseline = _Window(BASELINE_WINDOWS * window)
        self._held: deque[Held] = deque()

    def holds(self, row: Row) -> bool:
        """Whether the row goes into quarantine. Every row counts as traffic."""
        keys = (template_of(row.messages), unit_key(row.unit or row.id))
        self._num_seen += 1
        for old in self._recent.push(keys):
            self._baseline.push(old)
        key = next((key for key in keys if self._spikes(key)), None)
        if key is None:
            return False
        due = self._num_seen + HOLD_WINDOWS * self._window
        self._held.append(Held(row.id, normalised_digest(row.messages), key, due))
        return True

    def decide(self) -> tuple[list[Held], list[Held]]:
        """Rows whose time has come: those released, and those dropped."""
        released: list[Held] = []
        dropped: list[Held] = []
        while self._held and self._held[0].due <= self._num_seen:
            held = self._held.popleft()
            lasts = self._recent.share(held.key) >= self._min_share
            (released if lasts else dropped).append(held)
        return released, dropped

    @property
    def held_ids(self) -> list[str]:
        """The rows in quarantine, oldest first."""
        return [held.id for held in self._held]

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "num_seen": self._num_seen,
            "recent": self._recent.rows(),
            "baseline": self._baseline.rows(),
            "held": [list(astuple(held)) for held in self._held],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; the window may have another length now."""
        self._num_seen = state["num_seen"]
        self._recent = _Window(self._window)
        self._baseline = _Window(BASELINE_WINDOWS * self._window)
        for template, unit in [*state["baseline"], *state["recent"]]:
            for old in self._recent.push((template, unit)):
                self._baseline.push(old)
        self._held = deque(Held(*values) for values in state["held"])

    def _spikes(self, key: str) -> bool:
        if len(self._baseline) < self._window:
            return False
        recent = self._recent.share(key)
        return recent >= self._min_share and recent >= self._factor * self._baseline.share(key)


class _Window:
    """The keys of the last rows, counted."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._rows: deque[tuple[str, str]] = deque()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    def push(self, keys: tuple[str, str]) -> list[tuple[str, str]]:
        """Add a row; returns the one that leaves for it, if any."""
        self._rows.append(keys)
        self._counts.update(keys)
        if len(self._rows) <= self._length:
            return []
        old = self._rows.popleft()
        for key in old:
            self._counts[key] -= 1
            if self._counts[key] == 0:
                del self._counts[key]
        return [old]

    def share(self, key: str) -> float:
        """Part of the rows that have this key."""
        return self._counts[key] / len(self._rows)

    def rows(self) -> list[list[str]]:
        """Oldest first, as JSON values."""
        return [list(keys) for keys in self._rows]
