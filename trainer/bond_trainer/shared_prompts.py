"""Log-probabilities of several answers to each prompt, with the prompt computed once.

A rollout group has k + P answers to one prompt; where prompts are as long as answers, computing
them per answer would double the work. So the prompts run through the model first, their keys and
values are repeated for the answers, and gradients flow back through them. The results are those of
`logprobs`, up to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bond_trainer.logprobs import DEFAULT_BATCH_TOKENS, TokenRow


@dataclass(frozen=True, slots=True)
class _Group:
    """A prompt, and the places of its answers among the rows."""

    prompt_token_ids: tuple[int, ...]
    places: tuple[int, ...]


def backward_shared_prompts(
    model: nn.Module,
    rows: Sequence[TokenRow],
    coefficients_R: Tensor,
    *,
    temperature: float = 1.0,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> Tensor:
    """Accumulate the gradient of sum(coefficient * log P) and return log P, without gradient.

    Rows of coefficient 0 are skipped and returned as NaN. Batches hold whole prompts, at least
    one; `max_batch_tokens` bounds their prompt and answer tokens, padding included.
    """
    logprobs_R = torch.full_like(coefficients_R, torch.nan, requires_grad=False)
    for batch in _batches(_groups(rows, coefficients_R.tolist()), rows, max_batch_tokens):
        places = [place for group in batch for place in group.places]
        sums = _logprobs(model, batch, rows, temperature)
        (sums * coefficients_R[places].to(sums)).sum().backward()
        logprobs_R[places] = sums.detach().to(logprobs_R)
    return logprobs_R


def _groups(rows: Sequence[TokenRow], coefficients: Sequence[float]) -> list[_Group]:
    """Rows that count, by prompt; prompts of similar length beside one another."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (row, coefficient) in enumerate(zip(rows, coefficients, strict=True)):
        if not row.prompt_token_ids or not row.completion_token_ids:
            raise ValueError(f"row {place} has an empty prompt or completion")
        if coefficient != 0:
            places.setdefault(tuple(row.prompt_token_ids), []).append(place)
    groups = [_Group(prompt, tuple(found)) for prompt, found in places.items()]
    return sorted(groups, key=lambda group: len(group.prompt_token_ids))


def _batches(
    groups: Sequence[_Group], rows: Sequence[TokenRow], max_batch_tokens: int
) -> Iterator[list[_Group]]:
    batch: list[_Group] = []
    longest_prompt = longest_answer = num_answers = 0
    for group in groups:
        prompt = max(longest_prompt, len(group.prompt_token_ids))
        answer = max(longest_answer, *(len(rows[p].completion_token_ids) for p in group.places))
        answers = num_answers + len(group.places)
        if batch and (len(batch) + 1) * prompt + answers * answer > max_batch_tokens:
            yield batch
            batch = []
            prompt, answers = len(group.prompt_token_ids), len(group.places)
            answer = max(len(rows[p].completion_token_ids) for p in group.places)
        batch.append(group)
        longest_prompt, longest_answer, num_answers = prompt, answer, answers
    if batch:
        yield batch


def _logprobs(
    model: nn.Module, batch: Sequence[_Group], rows: Sequence[TokenRow], temperature: float
) -> Tensor:
    """log P of the batch's answers, group after group.

    The prompts run without their last token, which predicts the answer's first and so begins
    each answer's own part.
    """
    device = next(model.parameters()).device
    prefixes = [group.prompt_token_ids[:-1] for group in batch]
    owner = [i for i, group in enumerate(batch) for _ in group.places]
    answers = [rows[place].completion_token_ids for group in batch for place in group.places]
    suffixes = [
        (batch[i].prompt_token_ids[-1], *answer[:-1])
        for i, answer in zip(owner, answers, strict=True)
    ]
    suffix_ids_RS, suffix_mask_RS = _padded(suffixes, device)
    lengths_R = torch.tensor([len(prefixes[i]) for i in owner], device=device)
    positions_RS = lengths_R[:, None] + torch.arange(suffix_ids_RS.shape[1], device=device)
    cache, mask_RT = None, suffix_mask_RS
    if max(map(len, prefixes)) > 0:
        prefix_ids_GP, prefix_mask_GP = _padded(prefixes, device)
        cache = model(
            input_ids=prefix_ids_GP, attention_mask=prefix_mask_GP, use_cache=True
        ).past_key_values
        index_R = torch.tensor(owner, device=device)
        cache.batch_select_indices(index_R)
        mask_RT = torch.cat([prefix_mask_GP[index_R], suffix_mask_RS], dim=1)
    logits_RSV = model(
        input_ids=suffix_ids_RS,
        attention_mask=mask_RT,
        position_ids=positions_RS,
        past_key_values=cache,
        use_cache=cache is not None,
    ).logits
    wanted_MV = logits_RSV[suffix_mask_RS.bool()]
    if wanted_MV.dtype not in (torch.float32, torch.float64):
        wanted_MV = wanted_MV.float()
    targets_M = torch.tensor([token for answer in answers for token in answer], device=device)
    flat_M = -functional.cross_entropy(wanted_MV / temperature, targets_M, reduction="none")
    return torch.stack([piece.sum() for piece in flat_M.split([len(a) for a in answers])])


def _padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids filled up on the right, and the mask of what is real."""
    longest = max(map(len, sequences))
    ids = torch.zeros((len(sequences), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[i, : len(sequence)] = 1
    return ids.to(device), mask.to(device)
