"""How long what is kept is kept."""

from pydantic import Field, model_validator

from bond_core.config.base import Section


class RetentionConfig(Section):
    """Lifetimes in the store. What is over is deleted in the background, a few rows at a time."""

    content_days: float | None = Field(default=None, gt=0)
    """Messages, answers, tokens and `metadata` of a row; without, they are kept as long as it is.
    The trainer does not learn from rows whose content is gone."""
    rows_days: float | None = Field(default=None, gt=0)
    """The rest of a row: arm, scores, times, who asked; without, for ever."""
    replay_hours: float = Field(default=24.0, gt=0)
    """The answer under an `Idempotency-Key`."""
    check_every_s: float = Field(default=60.0, gt=0)
    """How often the gateway looks for what is over."""
    chunk_rows: int = Field(default=200, ge=1)
    """Most rows that one transaction deletes; answers are committed between them."""

    @model_validator(mode="after")
    def _rows_outlive_their_content(self) -> "RetentionConfig":
        content, rows = self.content_days, self.rows_days
        if content is not None and rows is not None and content > rows:
            raise ValueError(
                f"content_days ({content:g}) is over rows_days ({rows:g}): "
                "content ends with its row at the latest"
            )
        return self
