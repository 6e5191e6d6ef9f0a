"""The scorer contract: a raw number for each answer, higher is better."""

from collections.abc import Sequence
from typing import Protocol

from bond_core.types import Conversation


class Scorer(Protocol):
    """Scores final answers. Scores are raw: no sigmoid, which would saturate and tie."""

    @property
    def name(self) -> str:
        """Identifies the scorer in logs, manifests and reports."""
        ...

    @property
    def identity(self) -> str:
        """sha256 of what decides the scores, as it was at `start`; known once that returned.

        Kept scores are this scorer's only as long as this is the same: the name stays when a
        function is edited or other weights are put into the folder.
        """
        ...

    async def start(self) -> None:
        """Load or connect. Raises `ModelLoadError` naming the cause and the remedy."""
        ...

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        """One finite score per (prompt, completion) pair, in order.

        Raises `ScoringError` if any score is missing, NaN or infinite, or an input is too long
        for the reward model: nothing is ever cut, and no score is ever made up.
        """
        ...

    async def close(self) -> None:
        """Release what `start` opened."""
        ...
