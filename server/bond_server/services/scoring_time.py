"""How much of a deadline drawing leaves to scoring."""

_WEIGHT = 0.2
"""Of the newest scoring, where it was faster than those before."""
_MARGIN = 1.5
"""A scorer that is somewhat slower than lately ends in time."""
_LEAST_SHARE = 0.1
"""Of a deadline, also where no scoring has been seen yet: unranked candidates are no selection."""
_MOST_SHARE = 0.5


class ScoringTime:
    """The time that scoring takes lately: up at once, down slowly.

    A scoring that was given up counts with the time that it had, so that a slow scorer is given
    half as much again the next time.
    """

    def __init__(self) -> None:
        self._lately_s = 0.0

    def observe(self, spent_s: float) -> None:
        """Count one scoring."""
        decayed = self._lately_s + _WEIGHT * (spent_s - self._lately_s)
        self._lately_s = max(spent_s, decayed)

    def set_aside_s(self, remaining_s: float) -> float:
        """Seconds of those left that are not for drawing."""
        wanted = max(_MARGIN * self._lately_s, _LEAST_SHARE * remaining_s)
        return min(wanted, _MOST_SHARE * remaining_s)
