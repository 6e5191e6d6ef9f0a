"""Draws answers from the reference policy: the recipe's own batched sampler.

Plain sampling at temperature 1 over the whole vocabulary, which is the law that everything in the
demo world is measured under. A prompt is read once for all of its answers, and rows that have
ended leave the batch, so that the longest answers do not make all others wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import DynamicCache, LlamaForCausalLM

from bond_core.types import FinishReason
from bond_demo.making.training_batches import pad_left

MAX_NEW_TOKENS = 80
ROWS_PER_BATCH = 256
_SHRINK_AT = 0.7
"""The batch is made smaller when fewer than this share of its rows still run: each time costs a
copy of the key-value cache."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One answer's tokens, end of sequence included if drawn, and their log-probability (nats)."""

    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason


def sample_answers(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], count: int, seed: int
) -> list[list[Drawn]]:
    """`count` answers to each prompt, in the prompts' order; the same seed gives the same draws."""
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    prompts_per_batch = max(1, ROWS_PER_BATCH // count)
    drawn: list[list[Drawn]] = [[] for _ in prompts]
    for start in range(0, len(order), prompts_per_batch):
        places = order[start : start + prompts_per_batch]
        answers = _sample_batch(model, [prompts[place] for place in places], count, generator)
        for row, answer in enumerate(answers):
            drawn[places[row // count]].append(answer)
    return drawn


class _Rows:
    """What is remembered of each row while a batch is drawn."""

    def __init__(self, rows: int, end_of_sequence: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.logprobs = [0.0] * rows
        self.ended = [False] * rows
        self.in_batch = list(range(rows))
        self._end_of_sequence = end_of_sequence

    def add(self, tokens: list[int], logprobs: list[float]) -> None:
        """Note the next token of every row of the batch; those that have ended take no more."""
        for row, token, logprob in zip(self.in_batch, tokens, logprobs, strict=True):
            if not self.ended[row]:
                self.tokens[row].append(token)
                self.logprobs[row] += logprob
                self.ended[row] = token == self._end_of_sequence

    def places_running(self) -> list[int]:
        """Places in the batch of the rows that have not ended."""
        return [place for place, row in enumerate(self.in_batch) if not self.ended[row]]

    def keep(self, places: list[int]) -> None:
        """Reduce the batch to these places."""
        self.in_batch = [self.in_batch[place] for place in places]

    def drawn(self) -> list[Drawn]:
        """All rows, in their first order."""
        return [
            Drawn(tuple(tokens), logprob, "stop" if ended else "length")
            for tokens, logprob, ended in zip(self.tokens, self.logprobs, self.ended, strict=True)
        ]


@torch.inference_mode()
def _sample_batch(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    count: int,
    generator: torch.Generator,
) -> list[Drawn]:
    ids_BT = pad_left(prompts, 0)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    mask_BT = (torch.arange(ids_BT.shape[1]) >= ids_BT.shape[1] - lengths_B[:, None]).long()
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        logits_to_keep=1,
    )
    copies = torch.arange(len(prompts)).repeat_interleave(count)
    cache.batch_select_indices(copies)
    logits_BV, mask_BT, lengths_B = output.logits[copies, -1], mask_BT[copies], lengths_B[copies]
    rows = _Rows(len(copies), cast("int", model.config.eos_token_id))
    for step in range(MAX_NEW_TOKENS):
        logprobs_BV = logits_BV.log_softmax(-1)
        next_B1 = torch.multinomial(logprobs_BV.exp(), 1, generator=generator)
        rows.add(next_B1[:, 0].tolist(), logprobs_BV.gather(1, next_B1)[:, 0].tolist())
        running = rows.places_running()
        if not running or step == MAX_NEW_TOKENS - 1:
            break
        if len(running) < _SHRINK_AT * len(rows.in_batch):
            kept = torch.tensor(running)
            rows.keep(running)
            cache.batch_select_indices(kept)
            next_B1, mask_BT, lengths_B = next_B1[kept], mask_BT[kept], lengths_B[kept]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)
        logits_BV = model(
            input_ids=next_B1,
            attention_mask=mask_BT,
            position_ids=(lengths_B + step)[:, None],
            past_key_values=cache,
        ).logits[:, -1]
    return rows.drawn()
