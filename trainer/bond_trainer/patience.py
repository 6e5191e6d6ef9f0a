"""How long a run waits for servers that do not answer, or refuse what is published."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bond_core.errors import BondError, EngineUnavailableError, ScorerUnavailableError
from bond_trainer.causes import first_cause
from bond_trainer.served_publishing import PublicationError

MAX_PUBLICATION_FAILURES = 10
"""Publications in a row that may be refused: a server that answers and refuses goes on to."""


AWAY = (EngineUnavailableError, ScorerUnavailableError, PublicationError)
"""What waiting may mend."""


class StoppedWaitingError(Exception):
    """The run was told to stop while it waited."""


@dataclass(slots=True)
class Patience:
    """What went wrong in a row, and whether to try again."""

    max_pause_s: float
    clock: Callable[[], float] = time.monotonic
    failing_since: float | None = None
    num_refused: int = 0

    def spend(self, error: Exception) -> BondError:
        """The reason to wait for another attempt.

        Raises the error itself if it is none, or if the run has waited long enough.
        """
        cause = first_cause(error)
        if not isinstance(cause, AWAY):
            raise error
        if self.failing_since is None:
            self.failing_since = self.clock()
        self.num_refused += isinstance(cause, PublicationError)
        if self.num_refused >= MAX_PUBLICATION_FAILURES:
            raise cause
        if self.clock() - self.failing_since >= self.max_pause_s:
            raise EngineUnavailableError(
                f"training waited {self.max_pause_s:g} s (trainer.rollouts.max_pause_s) for its "
                f"servers: {cause}. Once it is well, start the trainer again: it goes on from its "
                "checkpoint"
            ) from error
        return cause

    def restore(self) -> bool:
        """Something succeeded: begin anew. Whether anything had failed before."""
        had_failed = self.failing_since is not None
        self.failing_since, self.num_refused = None, 0
        return had_failed
