"""Winners of logged Best-of-N requests, as examples for the forward term.

They cost no sampling at all: the gateway drew and scored them to answer. A row qualifies if its
winner follows the law of Best-of-N of the reference exactly.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bond_core.holdout import Split, split_of
from bond_core.store import Store
from bond_core.store.records import CompletionRecord
from bond_core.types import REFERENCE_VERSION
from bond_trainer.logprobs import TokenRow
from bond_trainer.objectives.winners import winner_indices
from bond_trainer.prompt_pool import opening

SeededDraw = tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, slots=True)
class Winners:
    """The examples, oldest first, and what became of the rows, by reason."""

    examples: tuple[TokenRow, ...]
    counts: Mapping[str, int]
    seqs: tuple[int, ...] = ()
    """The examples' rows in the log."""


async def logged_winners(
    store: Store,
    best_of: int,
    *,
    max_rows: int,
    max_prompt_tokens: int,
    held_out: frozenset[str] = frozenset(),
) -> Winners:
    """The newest qualifying rows with at least `best_of` candidates.

    The winner is taken among a row's first `best_of` candidates, so that rows of any larger N
    give examples of one law. A request sent again with its seed draws the same candidates: that is
    no second draw, and only the first is learned from (`repeated`).
    """
    rows = await store.completions.winners(best_of, max_rows)
    counts: Counter[str] = Counter()
    examples: list[TokenRow] = []
    seqs: list[int] = []
    drawn: set[SeededDraw] = set()
    for row in sorted(rows, key=lambda record: record.seq):
        reason = disqualification(row, best_of, max_prompt_tokens, held_out)
        if reason is None:
            draw = _seeded_draw(row, best_of)
            reason = "repeated" if draw in drawn else None
            if draw is not None:
                drawn.add(draw)
        counts[reason or "accepted"] += 1
        if reason is None:
            examples.append(winner_of(row, best_of))
            seqs.append(row.seq)
    return Winners(tuple(examples), dict(counts), tuple(seqs))


def disqualification(
    row: CompletionRecord, best_of: int, max_prompt_tokens: int, held_out: frozenset[str]
) -> str | None:
    """Why a row's winner is not a draw of Best-of-N of the reference that may be learned from;
    None if it is."""
    candidates = row.candidates[:best_of]
    checks = {
        "best_of_too_small": best_of < 2 or len(candidates) < best_of,
        "not_reference": row.version != REFERENCE_VERSION,
        "not_standard_sampling": not row.standard_sampling,
        "not_allowed": not row.may_train or not row.messages,
        "not_ok": row.status != "ok" or row.degraded is not None,
        "unscored": any(c.score is None for c in candidates),
        "no_tokens": not row.prompt_token_ids
        or not all(c.completion.token_ids for c in candidates),
        "too_long": len(row.prompt_token_ids) > max_prompt_tokens,
    }
    found = next((reason for reason, applies in checks.items() if applies), None)
    if found is None and (
        split_of(row.messages) is not Split.TRAIN or opening(row.messages) in held_out
    ):
        return "held_out"
    return found


def winner_of(row: CompletionRecord, best_of: int) -> TokenRow:
    """The best-scored of a qualifying row's first `best_of` candidates."""
    candidates = row.candidates[:best_of]
    scores = torch.tensor([[c.score for c in candidates]], dtype=torch.float64)
    best = candidates[int(winner_indices(scores)[0])]
    return TokenRow(row.prompt_token_ids, best.completion.token_ids)


def _seeded_draw(row: CompletionRecord, best_of: int) -> SeededDraw | None:
    """The seed, the prompt's tokens, and those of every candidate that competes, in their order.

    None without a seed: equal candidates are then independent draws that happen to agree, and
    leaving them out would bias the law.
    """
    if row.params.seed is None:
        return None
    candidates = (c.completion.token_ids for c in row.candidates[:best_of])
    return row.params.seed, row.prompt_token_ids, tuple(candidates)
