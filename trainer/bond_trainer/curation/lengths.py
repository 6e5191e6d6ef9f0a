"""Neither empty, nor too short, nor too long."""

from dataclasses import dataclass

from bond_trainer.curation.row import Row


@dataclass(frozen=True, slots=True)
class LengthRule:
    """Bounds on the rendered prompt's tokens, both included.

    Answers need no bound of their own: `sampling.max_tokens` is that of every draw.
    """

    min_tokens: int
    max_tokens: int

    def refuse(self, row: Row) -> str | None:
        """`too_short`, `too_long`, or None."""
        if row.num_tokens < self.min_tokens:
            return "too_short"
        return "too_long" if row.num_tokens > self.max_tokens else None
