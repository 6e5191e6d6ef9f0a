"""Log-probabilities of whole completions under a causal language model.

Sums over every completion token, the end of sequence included, at the temperature of sampling;
padding counts nothing. The softmax is taken in float32 at least. Rows are processed in batches of
similar length, and only the positions that predict a completion token meet the output head, few at
a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bond_trainer.head import VocabularyHead

DEFAULT_BATCH_TOKENS = 8192
"""Prompt and completion tokens, padding included, of one forward pass."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A prompt as the model saw it, and a completion; neither empty."""

    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.prompt_token_ids) + len(self.completion_token_ids)


def sequence_logprobs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    temperature: float = 1.0,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> Tensor:
    """log P(completion | prompt) of each row in nats, `(rows,)`, in the order of the rows.

    Carries the gradient where gradients are on; all batches' activations are then held until the
    backward pass, which `backward_sequence_logprobs` avoids.
    """
    tokens = token_logprobs(model, rows, temperature=temperature, max_batch_tokens=max_batch_tokens)
    return torch.stack([row.sum() for row in tokens])


def token_logprobs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    temperature: float = 1.0,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> list[Tensor]:
    """Log-probability of each completion token, one tensor per row, in the order of the rows."""
    results: dict[int, Tensor] = {}
    for indices in _batches(rows, max_batch_tokens):
        batch = [rows[i] for i in indices]
        flat = _completion_logprobs(model, batch, temperature)
        pieces = flat.split([len(row.completion_token_ids) for row in batch])
        results.update(zip(indices, pieces, strict=True))
    return [results[i] for i in range(len(rows))]


def backward_sequence_logprobs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    coefficients_R: Tensor,
    *,
    temperature: float = 1.0,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> Tensor:
    """Accumulate the gradient of sum(coefficient * log P) and return log P, without gradient.

    Batch by batch, forward and backward, so that memory does not grow with the number of rows.
    The coefficients are d loss / d log P, as differentiating an objective with respect to
    detached log-probabilities gives them. Rows of coefficient 0 are skipped and returned as NaN.
    """
    logprobs_R = torch.full_like(coefficients_R, torch.nan, requires_grad=False)
    used = [i for i, c in enumerate(coefficients_R.tolist()) if c != 0]
    for places in _batches([rows[i] for i in used], max_batch_tokens):
        indices = [used[place] for place in places]
        batch = [rows[i] for i in indices]
        flat = _completion_logprobs(model, batch, temperature)
        pieces = flat.split([len(row.completion_token_ids) for row in batch])
        sums = torch.stack([piece.sum() for piece in pieces])
        (sums * coefficients_R[indices].to(sums)).sum().backward()
        logprobs_R[indices] = sums.detach().to(logprobs_R)
    return logprobs_R


def _batches(rows: Sequence[TokenRow], max_batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches of similar prompt length, within the token limit."""
    for i, row in enumerate(rows):
        if not row.prompt_token_ids or not row.completion_token_ids:
            raise ValueError(f"row {i} has an empty prompt or completion")
    order = sorted(
        range(len(rows)), key=lambda i: (len(rows[i].prompt_token_ids), rows[i].num_tokens)
    )
    batch: list[int] = []
    longest = 0
    for i in order:
        longest_with = max(longest, rows[i].num_tokens)
        if batch and longest_with * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch, longest_with = [], rows[i].num_tokens
        batch.append(i)
        longest = longest_with
    if batch:
        yield batch


def _completion_logprobs(model: nn.Module, batch: list[TokenRow], temperature: float) -> Tensor:
    """Log-probabilities of all completion tokens of the batch, row after row, `(tokens,)`."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    device = next(model.parameters()).device
    longest = max(row.num_tokens for row in batch)
    input_ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    row_index: list[int] = []
    position: list[int] = []
    targets: list[int] = []
    for i, row in enumerate(batch):
        tokens = [*row.prompt_token_ids, *row.completion_token_ids]
        input_ids_BT[i, : len(tokens)] = torch.tensor(tokens)
        mask_BT[i, : len(tokens)] = 1
        row_index += [i] * len(row.completion_token_ids)
        # the logits at position t are the law of token t + 1
        position += range(len(row.prompt_token_ids) - 1, len(tokens) - 1)
        targets += row.completion_token_ids
    head = VocabularyHead(model)
    hidden = head.hidden(
        input_ids=input_ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
    )
    wanted_MD = hidden[row_index, position]
    targets_M = torch.tensor(targets, device=device)
    return torch.cat(
        [
            head.log_laws(wanted_MD[chunk], temperature)
            .gather(1, targets_M[chunk].unsqueeze(1))
            .squeeze(1)
            for chunk in head.chunks(len(targets))
        ]
    )
