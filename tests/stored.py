"""Records to put into a store."""

from dataclasses import replace
from typing import Any

from bond_core.holdout import Split
from bond_core.store import CompletionRecord, PolicyRecord, Store
from bond_core.store.completions import JOINED
from bond_core.store.rows import decode
from bond_core.store.tables import completions
from bond_core.types import (
    Arm,
    Candidate,
    Completion,
    Message,
    PolicyState,
    SamplingParams,
)


def candidate(index: int, tokens: int = 3, score: float | None = 0.5) -> Candidate:
    """A candidate of so many tokens, log-probability -0.25 each (exact in float32)."""
    completion = Completion(
        text=f"answer {index}",
        token_ids=tuple(range(index, index + tokens)),
        logprobs=(-0.25,) * tokens,
        finish_reason="stop",
    )
    return Candidate(index=index, completion=completion, score=score)


def completion(id: str, **changes: Any) -> CompletionRecord:
    """A single answer of the reference that may be learned from, with the changes."""
    plain = CompletionRecord(
        id=id,
        created_at=1000.0,
        requested_model="demo:reference",
        arm=Arm.REFERENCE,
        version="v0000",
        best_of=1,
        messages=(Message("user", "Where is my parcel?"),),
        params=SamplingParams(),
        standard_sampling=True,
        split=Split.TRAIN,
        may_train=True,
        unit=id,
        prompt_token_ids=(1, 2, 3),
        candidates=(candidate(0),),
        chosen=(0,),
        latency_s=0.1,
    )
    return replace(plain, **changes)


def best_of_n(id: str, n: int, **changes: Any) -> CompletionRecord:
    """Best-of-N of the reference; candidate i has score i."""
    drawn = tuple(candidate(i, score=float(i)) for i in range(n))
    bon = completion(id, arm=Arm.BON, best_of=n, candidates=drawn, chosen=(n - 1,), score=n - 1.0)
    return replace(bon, **changes)


def policy(version: str, **changes: Any) -> PolicyRecord:
    """A challenger, child of the reference."""
    plain = PolicyRecord(
        version=version,
        state=PolicyState.CHALLENGER,
        path=f"adapters/{version}",
        parent="v0000",
        step=10,
        created_at=1000.0,
        updated_at=1000.0,
    )
    return replace(plain, **changes)


async def all_rows(store: Store) -> list[CompletionRecord]:
    """Every row, oldest first."""
    query = JOINED.order_by(completions.c.seq)
    return await store.database.read(lambda c: [decode(r) for r in c.execute(query).mappings()])
