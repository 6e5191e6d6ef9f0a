"""Never what is evaluated on: the held-out split, and the openings of the configured files."""

from collections.abc import Collection

from bond_core.holdout import Split, split_of
from bond_trainer.curation.identity import opening
from bond_trainer.curation.row import Row


class HeldOutRule:
    """Refuses a conversation of a held-out half, or with an opening of the held-out files."""

    def __init__(self, openings: Collection[str]) -> None:
        self._openings = frozenset(openings)

    def refuse(self, row: Row) -> str | None:
        """`held_out`, or None."""
        if split_of(row.messages) is not Split.TRAIN or opening(row.messages) in self._openings:
            return "held_out"
        return None
