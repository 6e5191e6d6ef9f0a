"""Gradients of several answers to each prompt, with the prompt computed once.

A rollout group has k + P answers to one prompt; where prompts are as long as answers, computing
them per answer would double the work. So the prompts run through the model first, their keys and
values are repeated for the answers, and gradients flow back through them. The results are those of
`logprobs`, up to rounding.

A row can add two things to the gradient: its tokens' log-probabilities, each with a coefficient,
and the divergence between its tokens' next-token laws and another model's, over the whole
vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache

from bond_trainer.head import VocabularyHead
from bond_trainer.logprobs import DEFAULT_BATCH_TOKENS, TokenRow
from bond_trainer.objectives.token_divergences import generalised_jsd

FULLNESS = 0.85
"""Of the longest answer in a bucket: answers between have a tenth of padding in the mean. Closer
makes smaller batches, which costs more than it saves."""

PROMPT_FULLNESS = 0.6
"""Of the longest prompt in a micro-batch."""


@dataclass(frozen=True, slots=True)
class RowTerm:
    """What a row adds to the loss that is differentiated."""

    logprob: Tensor
    """d loss / d log P of its tokens: `(tokens,)`, or `()` for all alike."""
    divergence: float = 0.0
    """Weight of the sum over its tokens of `generalised_jsd(other, policy, beta)`."""
    beta: float = 0.0
    """0: KL(other || policy); 1: KL(policy || other)."""
    score: bool = False
    """Whether the row was drawn by the policy, and its divergence stands for that of whole
    answers: the gradient then also has, for each token, the divergence that follows it times
    the gradient of its log-probability (arXiv 2504.10637)."""

    @property
    def counts(self) -> bool:
        """Whether the row adds anything at all."""
        return self.divergence != 0 or bool((self.logprob != 0).any())


@dataclass(frozen=True, slots=True)
class RowValues:
    """What was computed on the way, without gradient; NaN for rows that add nothing."""

    logprobs_R: Tensor
    divergences_R: Tensor
    padding_share: float
    """Of the tokens that went through the model, how many were padding."""


Other = Callable[[], AbstractContextManager[nn.Module]]
"""Gives the other model of the divergences for as long as its context lasts."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A prompt, and the places of its answers among the rows."""

    prompt_token_ids: tuple[int, ...]
    places: tuple[int, ...]


def backward_shared_prompts(
    model: nn.Module,
    rows: Sequence[TokenRow],
    terms: Sequence[RowTerm],
    *,
    other: Other | None = None,
    temperature: float = 1.0,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> RowValues:
    """Accumulate the gradient of the rows' terms in the model's parameters.

    Batches hold whole prompts, at least one; `max_batch_tokens` bounds their prompt and answer
    tokens, padding included. Whatever the batches are, the gradient is that of all rows. Raises
    `ValueError` for a row with an empty prompt or answer, or a divergence without `other`.
    """
    if other is None and any(term.divergence for term in terms):
        raise ValueError("a row has a divergence, but there is no other model")
    logprobs_R, divergences_R = (torch.full((len(rows),), torch.nan) for _ in range(2))
    counted = [term.counts for term in terms]
    batches = list(_batches(_groups(rows, counted), rows, max_batch_tokens))
    for batch in batches:
        places = [place for group in batch for place in group.places]
        other_hidden = None
        with torch.no_grad():
            if other is not None and any(terms[place].divergence for place in places):
                with other() as other_model:
                    other_head = VocabularyHead(other_model)
                    other_hidden = (other_head, _hidden(other_head, batch, rows))
        head = VocabularyHead(model)
        hidden_MD = _hidden(head, batch, rows)
        laws = _Laws(head, hidden_MD.detach(), other_hidden, temperature)
        tokens = _Tokens.of([rows[p] for p in places], [terms[p] for p in places], hidden_MD)
        gradient_MD, logprobs_M, divergences_M = _head_gradient(laws, tokens)
        hidden_MD.backward(gradient_MD)
        for target, flat_M in (
            (logprobs_R, logprobs_M),
            (divergences_R, divergences_M),
        ):
            sums = flat_M.new_zeros(len(places)).index_add_(0, tokens.row_M, flat_M)
            target[places] = sums.to(target)
    return RowValues(logprobs_R, divergences_R, padding_share(batches, rows))


@dataclass(frozen=True, slots=True)
class _Laws:
    """Next-token laws of the batch's completion positions, computed chunk by chunk."""

    head: VocabularyHead
    hidden_MD: Tensor
    """Without the graph that it came from."""
    other: tuple[VocabularyHead, Tensor] | None
    temperature: float

    def own(self, chunk: slice, hidden_MD: Tensor) -> Tensor:
        return self.head.log_laws(hidden_MD[chunk], self.temperature)

    def others(self, chunk: slice) -> Tensor | None:
        """None without another model; never carries a gradient."""
        if self.other is None:
            return None
        head, hidden_MD = self.other
        with torch.no_grad():
            return head.log_laws(hidden_MD[chunk], self.temperature)

    def chunks(self) -> Iterator[slice]:
        return self.head.chunks(len(self.hidden_MD))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The batch's completion tokens, row after row, and their rows' terms."""

    row_M: Tensor
    target_M: Tensor
    coefficient_M: Tensor
    divergence_M: Tensor
    beta_M: Tensor
    score_M: Tensor

    @classmethod
    def of(cls, rows: Sequence[TokenRow], terms: Sequence[RowTerm], like: Tensor) -> "_Tokens":
        lengths = torch.tensor([len(row.completion_token_ids) for row in rows])
        device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)

        def spread(values: Sequence[float], of: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=of).repeat_interleave(lengths).to(device)

        return cls(
            torch.arange(len(rows)).repeat_interleave(lengths).to(device),
            torch.tensor([t for row in rows for t in row.completion_token_ids], device=device),
            torch.cat(
                [
                    term.logprob.to(device, dtype).expand(len(row.completion_token_ids))
                    for row, term in zip(rows, terms, strict=True)
                ]
            ),
            spread([term.divergence for term in terms], dtype),
            spread([term.beta for term in terms], dtype),
            spread([term.score for term in terms], torch.bool),
        )


def _head_gradient(laws: _Laws, tokens: _Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient with respect to the hidden states; log-probabilities and divergences of tokens."""
    coefficient_M = tokens.coefficient_M
    if bool((tokens.score_M & (tokens.divergence_M != 0)).any()):
        with torch.no_grad():
            found = [_terms(laws, tokens, c, laws.hidden_MD)[1] for c in laws.chunks()]
        following_M = _following(torch.cat(found), tokens.row_M)
        coefficient_M = coefficient_M + tokens.score_M * tokens.divergence_M * following_M
    leaf_MD = laws.hidden_MD.clone().requires_grad_()
    logprobs: list[Tensor] = []
    divergences: list[Tensor] = []
    for chunk in laws.chunks():
        logprob_M, divergence_M = _terms(laws, tokens, chunk, leaf_MD)
        weighted = coefficient_M[chunk] * logprob_M + tokens.divergence_M[chunk] * divergence_M
        weighted.sum().backward()
        logprobs.append(logprob_M.detach())
        divergences.append(divergence_M.detach())
    assert leaf_MD.grad is not None
    return leaf_MD.grad, torch.cat(logprobs), torch.cat(divergences)


def _terms(laws: _Laws, tokens: _Tokens, chunk: slice, hidden_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token of the chunk, and its divergence (0 where none is asked)."""
    own_MV = laws.own(chunk, hidden_MD)
    logprob_M = own_MV.gather(1, tokens.target_M[chunk].unsqueeze(1)).squeeze(1)
    divergence_M = torch.zeros_like(logprob_M)
    others_MV = laws.others(chunk)
    if others_MV is not None:
        wanted_M, beta_M = tokens.divergence_M[chunk] != 0, tokens.beta_M[chunk]
        for beta in beta_M[wanted_M].unique().tolist():
            at = (wanted_M & (beta_M == beta)).nonzero().squeeze(1)
            values = generalised_jsd(others_MV[at], own_MV[at], beta)
            divergence_M = divergence_M.index_put((at,), values)
    return logprob_M, divergence_M


def _following(values_M: Tensor, row_M: Tensor) -> Tensor:
    """For each token the sum over the later tokens of its row."""
    # in float64, so that what rows before it hold leaves nothing in a row's differences
    running_M = values_M.double().cumsum(0)
    ends_R = running_M.new_zeros(int(row_M.max()) + 1).scatter_reduce_(
        0, row_M, torch.arange(len(row_M), device=row_M.device, dtype=running_M.dtype), "amax"
    )
    return (running_M[ends_R.long()][row_M] - running_M).to(values_M)


def _groups(rows: Sequence[TokenRow], counted: Sequence[bool]) -> list[_Group]:
    """Rows that count, by prompt; prompts of similar length beside one another."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (row, counts) in enumerate(zip(rows, counted, strict=True)):
        if not row.prompt_token_ids or not row.completion_token_ids:
            raise ValueError(f"row {place} has an empty prompt or completion")
        if counts:
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
        loose = bool(batch) and len(batch[0].prompt_token_ids) < PROMPT_FULLNESS * prompt
        if batch and (loose or (len(batch) + 1) * prompt + answers * answer > max_batch_tokens):
            yield batch
            batch = []
            prompt, answers = len(group.prompt_token_ids), len(group.places)
            answer = max(len(rows[p].completion_token_ids) for p in group.places)
        batch.append(group)
        longest_prompt, longest_answer, num_answers = prompt, answer, answers
    if batch:
        yield batch


def _hidden(head: VocabularyHead, batch: Sequence[_Group], rows: Sequence[TokenRow]) -> Tensor:
    """What the head takes at the positions that predict the answers' tokens, group after group.

    The prompts run without their last token, which predicts the answer's first and so begins
    each answer's own part. Answers run in buckets of similar length, over the prompts' keys and
    values, so that little of what is computed is padding.
    """
    device = head.device
    prefixes = [group.prompt_token_ids[:-1] for group in batch]
    owner = [i for i, group in enumerate(batch) for _ in group.places]
    answers = [rows[place].completion_token_ids for group in batch for place in group.places]
    suffixes = [
        (batch[i].prompt_token_ids[-1], *answer[:-1])
        for i, answer in zip(owner, answers, strict=True)
    ]
    cache = prefix_mask_GP = None
    if max(map(len, prefixes)) > 0:
        prefix_ids_GP, prefix_mask_GP = _padded(prefixes, device)
        cache = head.cache(prefix_ids_GP, prefix_mask_GP)
    pieces: dict[int, Tensor] = {}
    for bucket in buckets([len(suffix) for suffix in suffixes]):
        ids_RS, mask_RS = _padded([suffixes[i] for i in bucket], device)
        index_R = torch.tensor([owner[i] for i in bucket], device=device)
        lengths_R = torch.tensor([len(prefixes[owner[i]]) for i in bucket], device=device)
        positions_RS = lengths_R[:, None] + torch.arange(ids_RS.shape[1], device=device)
        mask_RT = mask_RS
        if prefix_mask_GP is not None:
            mask_RT = torch.cat([prefix_mask_GP[index_R], mask_RS], dim=1)
        hidden_RSD = head.hidden(
            input_ids=ids_RS,
            attention_mask=mask_RT,
            position_ids=positions_RS,
            past_key_values=None if cache is None else _selected(cache, index_R),
            use_cache=cache is not None,
        )
        lengths = [len(suffixes[i]) for i in bucket]
        pieces.update(zip(bucket, hidden_RSD[mask_RS.bool()].split(lengths), strict=True))
    return torch.cat([pieces[i] for i in range(len(answers))])


def padding_share(batches: Sequence[Sequence[_Group]], rows: Sequence[TokenRow]) -> float:
    """1 - tokens / what they are filled up to, prompts and answers together; 0 of nothing."""
    real = computed = 0
    for batch in batches:
        prompts = [len(group.prompt_token_ids) - 1 for group in batch]
        answers = [len(rows[place].completion_token_ids) for g in batch for place in g.places]
        real += sum(prompts) + sum(answers)
        computed += len(prompts) * max(prompts)
        computed += sum(len(b) * max(answers[i] for i in b) for b in buckets(answers))
    return 1 - real / computed if computed else 0.0


def buckets(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows, longest first, in buckets whose shortest has `FULLNESS` of the longest."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    bucket: list[int] = []
    for i in order:
        if bucket and lengths[i] < FULLNESS * lengths[bucket[0]]:
            yield bucket
            bucket = []
        bucket.append(i)
    if bucket:
        yield bucket


def _selected(cache: Cache, index_R: Tensor) -> Cache:
    """Keys and values of some rows, in a cache of their own that shares the others' graph."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(index_R)
    return chosen


def _padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids filled up on the right, and the mask of what is real."""
    longest = max(map(len, sequences))
    ids = torch.zeros((len(sequences), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[i, : len(sequence)] = 1
    return ids.to(device), mask.to(device)
