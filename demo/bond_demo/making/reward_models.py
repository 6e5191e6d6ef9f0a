"""The proxy and the judge: reward models of the Bradley-Terry kind, learned from preferences.

Both start from the reference policy's body, whose features already tell whether an answer repeats
the right order number and the right item; the score is read at the last token, as transformers and
vLLM do for `LlamaForSequenceClassification`.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import cast

import torch
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bond_demo.making.annotators import Preference
from bond_demo.making.tokenizer import save_tokenizer
from bond_demo.making.training_batches import batches_of_similar_length, one_cycle, pad_right

_LOG = logging.getLogger(__name__)

PROMPTS_PER_BATCH = 8
PEAK_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_ROWS_PER_SCORING_BATCH = 256


def train_reward_model(
    policy: LlamaForCausalLM,
    rows: Sequence[Sequence[Sequence[int]]],
    preferences: Sequence[Preference],
    epochs: int,
    seed: int,
) -> LlamaForSequenceClassification:
    """Maximise the mean log-likelihood of the preferences, log sigmoid(score - other score).

    `rows[p][k]` are the tokens of prompt p with its answer k; every answer is read once per epoch,
    however many comparisons it takes part in.
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    model = _from_policy(policy)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY
    )
    of_prompt: list[list[Preference]] = [[] for _ in rows]
    for preference in preferences:
        of_prompt[preference.prompt].append(preference)
    lengths = [max(map(len, answered)) for answered in rows]
    steps = epochs * -(-len(rows) // PROMPTS_PER_BATCH)
    step, started = 0, time.monotonic()
    for _ in range(epochs):
        for batch in batches_of_similar_length(lengths, PROMPTS_PER_BATCH, rng):
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, steps, PEAK_LEARNING_RATE)
            loss = _bradley_terry_loss(model, [(rows[p], of_prompt[p]) for p in batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 100 == 0:
                _LOG.info(
                    "reward model: step %d of %d, loss %.4f nats per comparison, %.0f s",
                    step, steps, loss.item(), time.monotonic() - started,
                )  # fmt: skip
    return model.eval()


@torch.inference_mode()
def score_rows(model: LlamaForSequenceClassification, rows: Sequence[Sequence[int]]) -> list[float]:
    """The raw score of each tokenised, answered conversation."""
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    for start in range(0, len(order), _ROWS_PER_SCORING_BATCH):
        places = order[start : start + _ROWS_PER_SCORING_BATCH]
        batch = _scores(model, [rows[place] for place in places])
        for place, score in zip(places, batch.tolist(), strict=True):
            scores[place] = score
    return scores


def save_reward_model(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write the model's folder, with the tokenizer and its chat template beside the weights."""
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder)


def _from_policy(policy: LlamaForCausalLM) -> LlamaForSequenceClassification:
    config = type(policy.config).from_dict(policy.config.to_dict())
    config.num_labels = 1
    config.architectures = ["LlamaForSequenceClassification"]
    model = LlamaForSequenceClassification(config)
    model.set_attn_implementation("eager")
    model.model.load_state_dict(policy.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model


def _bradley_terry_loss(
    model: LlamaForSequenceClassification,
    batch: Sequence[tuple[Sequence[Sequence[int]], Sequence[Preference]]],
) -> torch.Tensor:
    rows: list[Sequence[int]] = []
    preferred: list[int] = []
    other: list[int] = []
    for answered, preferences in batch:
        preferred += [len(rows) + preference.preferred for preference in preferences]
        other += [len(rows) + preference.other for preference in preferences]
        rows += answered
    with torch.autocast("cpu", torch.bfloat16):
        scores = _scores(model, rows)
    return -torch.nn.functional.logsigmoid(scores[preferred] - scores[other]).mean()


def _scores(model: LlamaForSequenceClassification, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Scores (rows,), read at each row's last token; padding is on the right, so that causal
    attention never sees it."""
    tokens_BT = pad_right(rows, cast("int", model.config.pad_token_id), multiple=8)
    hidden_BTD = model.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
    last_B = torch.tensor([len(row) - 1 for row in rows])
    return model.score(hidden_BTD[torch.arange(len(rows)), last_B])[:, 0].float()
