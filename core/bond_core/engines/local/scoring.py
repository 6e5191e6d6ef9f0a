"""Teacher-forced scoring: log-probabilities of given completions of one prompt."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bond_core.engines.local.forward import Forward
from bond_core.engines.local.kv_cache import PrefixCache
from bond_core.engines.local.weights import PolicyWeights

_TOKENS_PER_PASS = 2048
"""Rows times padded length of one pass; running rows step between passes."""
_LOGITS_PER_PASS = 2**24
"""Logits of one pass: 64 MB in float32."""


@dataclass(slots=True, eq=False)
class ScoreRequest:
    """Completions of one prompt to score. Owned by the decode thread once submitted."""

    weights: PolicyWeights
    prompt_token_ids: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    temperature: float
    done: Callable[[list[tuple[float, ...]]], None]
    failed: Callable[[Exception], None]
    cancelled: bool = False
    result: dict[int, tuple[float, ...]] = field(default_factory=dict[int, tuple[float, ...]])


def score_in_passes(forward: Forward, request: ScoreRequest) -> Iterator[None]:
    """Score, yielding after each pass; the caller sets the weights before each.

    The prompt goes through the model once. Completions are right-padded; causality keeps the
    padding out of sight. Calls `request.done` at the end.
    """
    *before, last = request.prompt_token_ids
    prompt = PrefixCache()
    if before:
        _, prompt = forward.prefill([before])
        yield
    by_length = sorted(
        (i for i, completion in enumerate(request.completions) if completion),
        key=lambda i: len(request.completions[i]),
    )
    for chunk in _chunks(by_length, request.completions, forward.model.vocab_size):
        targets = [request.completions[i] for i in chunk]
        for i, logprobs in zip(chunk, _score(forward, prompt, last, targets, request), strict=True):
            request.result[i] = logprobs
        yield
    request.done([request.result.get(i, ()) for i in range(len(request.completions))])


def _chunks(
    by_length: Sequence[int], completions: Sequence[Sequence[int]], vocab_size: int
) -> Iterator[list[int]]:
    """Runs of indices, each small enough for one pass; at least one index per run."""
    chunk: list[int] = []
    for i in by_length:
        padded = len(completions[i]) * (len(chunk) + 1)
        if chunk and (padded > _TOKENS_PER_PASS or padded * vocab_size > _LOGITS_PER_PASS):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def _score(
    forward: Forward,
    prompt: PrefixCache,
    last_prompt_token: int,
    targets: list[tuple[int, ...]],
    request: ScoreRequest,
) -> list[tuple[float, ...]]:
    """Log-probabilities of each target. A long one is taken in pieces, so that the logits of no
    more than a piece exist at once."""
    length = max(len(target) for target in targets)
    device = forward.model.device
    target_BT = torch.tensor(
        [list(target) + [0] * (length - len(target)) for target in targets], device=device
    )
    first_B1 = torch.full((len(targets), 1), last_prompt_token, device=device)
    input_BT = torch.cat([first_B1, target_BT[:, :-1]], dim=1)
    piece = max(1, _LOGITS_PER_PASS // (forward.model.vocab_size * len(targets)))
    cache = PrefixCache(over=prompt)
    parts: list[Tensor] = []
    for start in range(0, length, piece):
        logits = forward.extend(cache, input_BT[:, start : start + piece])
        wanted = target_BT[:, start : start + piece]
        logprobs = torch.log_softmax(logits.float() / request.temperature, dim=-1)
        parts.append(logprobs.gather(2, wanted[:, :, None]).squeeze(2))
    rows: list[list[float]] = torch.cat(parts, dim=1).tolist()
    return [tuple(row[: len(target)]) for row, target in zip(rows, targets, strict=True)]
