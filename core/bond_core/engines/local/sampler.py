"""Drawing the next token of every row at once.

The common row (positive temperature, nothing else) costs no Python of its own. A token is drawn by
inverting the distribution function at one uniform number per row; so a row's noise is a sequence of
scalars, which can be the row's own (seeded) or the engine's.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bond_core.engines.local.rows import Row


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Which rows of a batch need what; made anew only when rows enter or leave."""

    adjusted: tuple[tuple[int, Tensor], ...]
    """(row, addition to the logits)."""
    temperature: Tensor | None
    """`[rows, 1]`; None if all are 1. Greedy rows have 1."""
    greedy: Tensor | None
    """Indices of rows at temperature 0."""
    truncated: Tensor | None
    """Indices of rows with top_k or top_p, with their values in the two fields below."""
    top_k: Tensor | None
    top_p: Tensor | None
    seeded: tuple[tuple[int, Row], ...]
    """(row, the row with noise of its own)."""
    detailed: tuple[tuple[int, int], ...]
    """(row, how many alternatives are told with its token)."""

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int, device: torch.device) -> "SamplingPlan":
        """The plan of a batch."""
        params = [row.request.params for row in rows]
        temperatures = [p.temperature or 1.0 for p in params]
        greedy = [i for i, p in enumerate(params) if p.temperature == 0]
        truncated = [
            i for i, p in enumerate(params) if p.temperature and _truncates(p.top_k, p.top_p)
        ]
        plain = all(temperature == 1.0 for temperature in temperatures)
        return cls(
            adjusted=tuple(
                (i, r.adjustment) for i, r in enumerate(rows) if r.adjustment is not None
            ),
            temperature=None
            if plain
            else torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None],
            greedy=torch.tensor(greedy, device=device) if greedy else None,
            truncated=torch.tensor(truncated, device=device) if truncated else None,
            top_k=torch.tensor(
                [min(params[i].top_k or vocab_size, vocab_size) for i in truncated], device=device
            ),
            top_p=torch.tensor([params[i].top_p for i in truncated], device=device),
            seeded=tuple((i, row) for i, row in enumerate(rows) if row.uniforms is not None),
            detailed=tuple(
                (i, p.top_logprobs) for i, p in enumerate(params) if p.top_logprobs is not None
            ),
        )


def _truncates(top_k: int, top_p: float) -> bool:
    return top_k > 0 or top_p < 1


Told = dict[int, tuple[float, list[tuple[int, float]]]]
"""By row: the log-probability of its token as it is told, and the likeliest tokens with theirs."""


def draw(
    logits_BV: Tensor, plan: SamplingPlan, generator: torch.Generator
) -> tuple[Tensor, Tensor, Told]:
    """One token per row and its log-probability (float32, nats) under the law it was drawn from.

    Bias and penalties come first, then temperature, then top_k, then top_p over what is left. The
    law of a greedy row is a point, so its log-probability is 0. A row whose logits are no law
    (a NaN or plus infinity among them) gets NaN.
    """
    logits_BV = logits_BV.float()
    if plan.adjusted:
        logits_BV = logits_BV.clone()
        for i, adjustment in plan.adjusted:
            logits_BV[i] += adjustment
    if plan.temperature is not None:
        logits_BV = logits_BV / plan.temperature
    if plan.truncated is not None and plan.top_k is not None and plan.top_p is not None:
        kept = truncate(logits_BV[plan.truncated], plan.top_k, plan.top_p)
        logits_BV = logits_BV.index_copy(0, plan.truncated, kept)
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    tokens_B1 = _invert(logprobs_BV, _noise(plan, logits_BV.shape[0], generator))
    logprobs_B = logprobs_BV.gather(1, tokens_B1).squeeze(1)
    tokens_B = tokens_B1.squeeze(1)
    if plan.greedy is not None:
        tokens_B[plan.greedy] = logits_BV[plan.greedy].argmax(dim=-1)
        logprobs_B[plan.greedy] = logprobs_B[plan.greedy].abs() * 0.0  # keeps NaN
    return tokens_B, logprobs_B, _told(logprobs_BV, tokens_B, plan)


def _told(logprobs_BV: Tensor, tokens_B: Tensor, plan: SamplingPlan) -> Told:
    told: Told = {}
    for i, count in plan.detailed:
        values_K, tokens_K = logprobs_BV[i].topk(min(count, logprobs_BV.shape[-1]))
        values: list[float] = values_K.tolist()
        tokens: list[int] = tokens_K.tolist()
        top = [pair for pair in zip(tokens, values, strict=True) if pair[1] > -math.inf]
        told[i] = (float(logprobs_BV[i, tokens_B[i]]), top)
    return told


def truncate(logits_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """Logits with everything outside top_k and then top_p at minus infinity.

    Exactly k tokens stay, ties broken by token id; of those the smallest set, most likely first,
    whose mass among the k reaches top_p. At least one token stays.
    """
    ordered_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    ordered_BV = ordered_BV.masked_fill(rank_V >= top_k_B[:, None], -torch.inf)
    mass_BV = torch.softmax(ordered_BV, dim=-1)
    before_BV = mass_BV.cumsum(dim=-1) - mass_BV
    out_BV = (before_BV >= top_p_B[:, None]) & (rank_V > 0) & (top_p_B[:, None] < 1)
    ordered_BV = ordered_BV.masked_fill(out_BV, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(1, order_BV, ordered_BV)


def _noise(plan: SamplingPlan, rows: int, generator: torch.Generator) -> Tensor:
    """One double in [0, 1) per row, on the CPU."""
    uniform_B = torch.rand(rows, dtype=torch.float64, generator=generator)
    if plan.seeded:
        index = torch.tensor([i for i, _ in plan.seeded])
        uniform_B[index] = torch.tensor(
            [row.uniforms[len(row.token_ids)] for _, row in plan.seeded if row.uniforms],
            dtype=torch.float64,
        )
    return uniform_B


def _invert(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token `[rows, 1]` whose cumulative probability exceeds the uniform number.

    Sums are in double precision: in single precision, tokens below 6e-8 would be drawn never or
    too often. The number is scaled by the total, which rounding leaves near 1.
    """
    cumulative_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    target_B1 = uniform_B.to(logprobs_BV.device)[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return tokens_B1.clamp_(max=logprobs_BV.shape[-1] - 1)
