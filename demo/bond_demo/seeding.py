"""The past of the demo's log: Best-of-8 answers that ship with the world."""

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from bond_core.config import BondConfig
from bond_core.holdout import split_of
from bond_core.store import open_store
from bond_core.store.records import CompletionRecord
from bond_core.types import REFERENCE_VERSION, Arm, Candidate, Completion, SamplingParams
from bond_demo.prompts import as_messages
from bond_demo.worlds import seed_log as past_answers

_NAMESPACE = uuid.UUID("6f0d6a52-2a52-5a8e-9d35-3f6f2d8f6d10")


async def seed_log(config: BondConfig) -> int:
    """Write the world's log into an empty store, whole or not at all; returns the number of rows.

    A store that holds anything is left alone, so that a run goes on where it ended.
    """
    store = await open_store(config.store_url)
    try:
        if await store.completions.count() > 0:
            return 0
        now = time.time()
        records = [record_of(row, place, config, now) for place, row in enumerate(past_answers())]
        await store.completions.record_many(records)
        return len(records)
    finally:
        await store.close()


def record_of(
    row: Mapping[str, Any], place: int, config: BondConfig, created_at: float
) -> CompletionRecord:
    """One row of the shipped log, as if the gateway had answered it by Best-of-N.

    Its candidates were drawn from the reference by the world's recipe, at temperature 1 with
    nothing truncated, and scored by the proxy.
    """
    messages = as_messages(row["messages"])
    candidates = tuple(_candidates(row["candidates"]))
    scores: list[float] = [candidate["score"] for candidate in row["candidates"]]
    best = scores.index(max(scores))
    sampling = SamplingParams(max_tokens=config.sampling.max_tokens)
    return CompletionRecord(
        id=str(uuid.uuid5(_NAMESPACE, str(place))),
        created_at=created_at,
        requested_model=f"{config.model.served_name}:bon",
        arm=Arm.BON,
        version=REFERENCE_VERSION,
        best_of=len(candidates),
        messages=messages,
        params=sampling,
        standard_sampling=sampling.same_distribution(config.sampling.params()),
        split=split_of(messages),
        may_train=True,
        unit=f"seed-{place}",
        prompt_token_ids=tuple(row["prompt_token_ids"]),
        candidates=candidates,
        chosen=(best,),
        source="seed",
        score=scores[best],
    )


def _candidates(rows: list[Mapping[str, Any]]) -> Iterator[Candidate]:
    for index, row in enumerate(rows):
        completion = Completion(
            text=row["text"],
            token_ids=tuple(row["token_ids"]),
            logprobs=(),  # the shipped log keeps the answers' sums alone
            finish_reason=row["finish_reason"],
        )
        yield Candidate(index, completion, row["score"])
