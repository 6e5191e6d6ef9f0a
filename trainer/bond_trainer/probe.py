"""Choosing the probe: the answers by which a served version is told from every other."""

import asyncio
from collections.abc import Sequence

from bond_core.adapters import ProbeCase
from bond_core.engines.base import Engine
from bond_core.types import Generation
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import POLICY

NUM_CASES = 8
MAX_CANDIDATES = 256
"""Answers that are compared; their number bounds the cost."""


async def choose_probe(
    learner: Learner,
    engine: Engine,
    parent: str,
    generations: Sequence[Generation],
) -> list[ProbeCase]:
    """The sampled answers on which policy, parent and reference differ most.

    Log-probabilities of policy and reference are the learner's; the parent's come from the
    trainer's engine, which holds its weights. At temperature 1.
    """
    rows: list[TokenRow] = []
    before: list[float] = []
    for generation in generations:
        answers = [completion.token_ids for completion in generation.completions]
        rows += [TokenRow(generation.prompt_token_ids, answer) for answer in answers]
        found = await engine.token_logprobs(parent, generation.prompt_token_ids, answers)
        before += [sum(logprobs) for logprobs in found]
        if len(rows) >= MAX_CANDIDATES:
            break
    this = await asyncio.to_thread(learner.logprobs, POLICY, rows)
    reference = await asyncio.to_thread(learner.logprobs, None, rows)
    cases = [
        ProbeCase(
            prompt_token_ids=list(row.prompt_token_ids),
            completion_token_ids=list(row.completion_token_ids),
            this=t,
            parent=p,
            reference=r,
        )
        for row, t, p, r in zip(rows, this, before, reference, strict=True)
    ]
    return sorted(cases, key=_separation, reverse=True)[:NUM_CASES]


def _separation(case: ProbeCase) -> float:
    return min(abs(case.this - case.parent), abs(case.this - case.reference))
