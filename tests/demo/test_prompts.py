"""The shipped prompts and the shipped log."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bond_core.holdout import Split, split_of
from bond_core.types import Message
from bond_demo.making.reward_models import score_rows
from bond_demo.making.tokenizer import decode_answer, encode_answered, encode_prompt
from bond_demo.prompts import GATE_PROMPTS, REPORT_PROMPTS, HeldOutPrompt, as_messages
from bond_demo.questions import opening_of, uses_held_out_template
from bond_demo.recipe import LOG_PROMPTS, make_prompts
from bond_demo.worlds import (
    gate_prompts,
    report_prompts,
    seed_log,
    traffic_prompts,
    training_prompts,
    world_path,
)

HELD_OUT = [
    pytest.param(gate_prompts, Split.GATE, GATE_PROMPTS, id="gate"),
    pytest.param(report_prompts, Split.REPORT, REPORT_PROMPTS, id="report"),
]


@pytest.fixture(scope="module")
def log() -> list[dict[str, Any]]:
    """All rows of the shipped log."""
    return list(seed_log())


def openings(conversations: Sequence[tuple[Message, ...]]) -> set[str]:
    """The first user messages."""
    return {opening_of(messages) for messages in conversations}


@pytest.mark.parametrize(("read", "split", "count"), HELD_OUT)
def test_held_out_prompts_hash_right_and_half_have_held_out_templates(
    read: Any, split: Split, count: int
) -> None:
    prompts: list[HeldOutPrompt] = read()
    assert len(prompts) == len(openings([p.messages for p in prompts])) == count
    assert {split_of(prompt.messages) for prompt in prompts} == {split}
    assert sum(prompt.template_held_out for prompt in prompts) == count // 2
    for prompt in prompts:
        assert uses_held_out_template(opening_of(prompt.messages)) == prompt.template_held_out


def test_the_recipe_writes_the_shipped_prompts(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    for name in ("gate.jsonl", "report.jsonl"):
        made = (tmp_path / "prompts" / name).read_bytes()
        assert made == (world_path() / "prompts" / name).read_bytes()


def test_traffic_is_distinct_reproducible_of_all_splits_and_without_held_out_templates() -> None:
    sent = list(islice(traffic_prompts(3), 3_000))
    assert sent == list(islice(traffic_prompts(3), 3_000))
    assert len(openings(sent)) == 3_000
    assert {split_of(messages) for messages in sent} == set(Split)
    assert not any(map(uses_held_out_template, openings(sent)))


def test_training_prompts_are_of_the_training_split() -> None:
    prompts = training_prompts(2_000, seed=4)
    assert len(openings(prompts)) == 2_000
    assert {split_of(messages) for messages in prompts} == {Split.TRAIN}
    assert not any(map(uses_held_out_template, openings(prompts)))


def test_the_log_is_of_training_prompts_with_eight_candidates_each(
    log: list[dict[str, Any]],
) -> None:
    conversations = [as_messages(row["messages"]) for row in log]
    assert len(openings(conversations)) == len(log) == LOG_PROMPTS
    assert {split_of(messages) for messages in conversations} == {Split.TRAIN}
    assert not any(map(uses_held_out_template, openings(conversations)))
    assert {len(row["candidates"]) for row in log} == {8}
    candidates = [candidate for row in log for candidate in row["candidates"]]
    assert {candidate["finish_reason"] for candidate in candidates} <= {"stop", "length"}
    assert sum(candidate["finish_reason"] == "stop" for candidate in candidates) > 23_900
    assert all(candidate["logprob"] < 0 for candidate in candidates)


def test_logged_tokens_log_probabilities_and_scores_are_those_of_the_shipped_models(
    log: list[dict[str, Any]],
    policy: LlamaForCausalLM,
    proxy: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for row in log[:: LOG_PROMPTS // 20]:
        messages = as_messages(row["messages"])
        prompt = encode_prompt(tokenizer, messages)
        assert row["prompt_token_ids"] == prompt
        for candidate in row["candidates"]:
            answer = candidate["token_ids"]
            assert decode_answer(tokenizer, answer) == candidate["text"]
            with torch.inference_mode():
                logits = policy(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            drawn = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
            assert candidate["logprob"] == pytest.approx(drawn, abs=2e-3)
            score = score_rows(proxy, [encode_answered(tokenizer, messages, candidate["text"])])
            assert candidate["score"] == pytest.approx(score[0], abs=2e-4)


def test_the_log_is_small(log: list[dict[str, Any]]) -> None:
    assert (world_path() / "seed_log.jsonl.gz").stat().st_size < 4_000_000
    assert set(log[0]) == {"messages", "prompt_token_ids", "candidates"}
    assert json.dumps(log[0])
