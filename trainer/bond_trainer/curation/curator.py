"""The rules in their order, and what they decided, counted."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bond_core.config import TrainerConfig
from bond_trainer.curation.duplicates import DuplicateRule
from bond_trainer.curation.health_checks import PingRule, RegularityRule
from bond_trainer.curation.held_out import HeldOutRule
from bond_trainer.curation.identity import normalised_digest
from bond_trainer.curation.lengths import LengthRule
from bond_trainer.curation.row import Row
from bond_trainer.curation.shares import ShareRule
from bond_trainer.curation.spikes import SpikeRule


@dataclass(frozen=True, slots=True)
class Decision:
    """What an offered row leads to. Ids may be of rows offered earlier."""

    reason: str
    """`accepted`, `quarantined`, or why the row is left out."""
    released: tuple[str, ...] = ()
    """Rows whose quarantine ends: they are accepted now."""
    dropped: tuple[str, ...] = ()
    """Rows whose quarantine ends: they are not learned from."""
    withdrawn: str | None = None
    """A row accepted earlier that proves to be a health check."""


@dataclass(frozen=True, slots=True)
class LogRules:
    """What only the log can tell: who asked, when, and what is usual."""

    regularity: RegularityRule
    shares: ShareRule
    key_shares: ShareRule
    spikes: SpikeRule


class Curator:
    """Judges rows one after the other; the first rule that refuses gives the reason.

    The order: `empty`, `held_out`, `too_short` or `too_long`, `health_check` (by the list, then by
    regularity), `duplicate`, `unit_share`, `key_share`, `quarantined`. A row that an earlier rule
    refuses is not seen by later ones, so refused rows use up no later share and make no spike.

    `counts` has the rows by reason, and of those quarantined how many were `released` (which are
    in `accepted` too) or dropped as `spike`.
    """

    def __init__(
        self, config: TrainerConfig, held_out: Collection[str], log: LogRules | None
    ) -> None:
        curation = config.curation
        self._held_out = HeldOutRule(held_out)
        self._lengths = LengthRule(curation.min_prompt_tokens, config.max_prompt_tokens)
        self._pings = PingRule(curation.health_checks)
        self._duplicates = DuplicateRule()
        self._log = log
        self.counts: Counter[str] = Counter()

    @property
    def quarantined_ids(self) -> list[str]:
        """Rows that wait for a decision, oldest first."""
        return [] if self._log is None else self._log.spikes.held_ids

    def offer(self, row: Row) -> Decision:
        """Judge the next row, and whatever of the quarantine is due by it."""
        self.counts["rows"] += 1
        reason, withdrawn = self._refuse(row)
        if reason is None:
            held = self._log is not None and self._log.spikes.holds(row)
            reason = "quarantined" if held else "accepted"
            self._duplicates.remember(normalised_digest(row.messages))
        self.counts[reason] += 1
        released, dropped = self._end_quarantines()
        return Decision(reason, released, dropped, withdrawn)

    def state(self) -> dict[str, Any]:
        """For the checkpoint: JSON values."""
        state: dict[str, Any] = {
            "counts": dict(self.counts),
            "duplicates": self._duplicates.state(),
        }
        if self._log is not None:
            state["regularity"] = self._log.regularity.state()
            state["shares"] = self._log.shares.state()
            state["key_shares"] = self._log.key_shares.state()
            state["spikes"] = self._log.spikes.state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.counts = Counter(state["counts"])
        self._duplicates.restore(state["duplicates"])
        if self._log is not None:
            self._log.regularity.restore(state["regularity"])
            self._log.shares.restore(state["shares"])
            self._log.key_shares.restore(state["key_shares"])
            self._log.spikes.restore(state["spikes"])

    def _refuse(self, row: Row) -> tuple[str | None, str | None]:
        """Why the row is left out, and the earlier row that goes with it."""
        if not row.messages:
            return "empty", None
        reason = self._held_out.refuse(row) or self._lengths.refuse(row) or self._pings.refuse(row)
        if reason is None and self._log is not None:
            reason = self._log.regularity.refuse(row)
            if reason is not None:
                return reason, self._log.regularity.first_of(row)
        reason = reason or self._duplicates.refuse(row)
        if reason is None and self._log is not None:
            reason = self._log.shares.refuse(row) or self._log.key_shares.refuse(row)
        return reason, None

    def _end_quarantines(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self._log is None:
            return (), ()
        released, dropped = self._log.spikes.decide()
        for held in dropped:
            self._duplicates.forget(held.digest)
        if released:
            self.counts.update(released=len(released), accepted=len(released))
        if dropped:
            self.counts.update(spike=len(dropped))
        return tuple(held.id for held in released), tuple(held.id for held in dropped)


def log_curator(config: TrainerConfig, held_out: Collection[str]) -> Curator:
    """All rules, for rows of the log in its order."""
    curation = config.curation
    rules = LogRules(
        RegularityRule(),
        ShareRule(
            max_share=curation.max_unit_share,
            window=curation.share_window,
            min_rows=curation.min_unit_rows,
        ),
        ShareRule(
            max_share=curation.max_key_share,
            window=curation.share_window,
            min_rows=curation.min_unit_rows,
            unit_of=lambda row: row.key,
            reason="key_share",
        ),
        SpikeRule(
            window=curation.spike_window,
            min_share=curation.spike_share,
            factor=curation.spike_factor,
        ),
    )
    return Curator(config, held_out, rules)


def plain_curator(config: TrainerConfig, held_out: Collection[str]) -> Curator:
    """The rules that need nobody who asks and no time, for the prompts of a file."""
    return Curator(config, held_out, None)
