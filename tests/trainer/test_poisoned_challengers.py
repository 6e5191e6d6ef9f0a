"""Real tiny policies that must not go live: each is refused, and the store says why."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tiny_training import config_of, prompts_file

from bond_core.config import BondConfig
from bond_core.statistics import paired_difference
from bond_core.store import PolicyRecord
from bond_core.types import REFERENCE_VERSION, Message, PolicyState
from bond_trainer.draws import draw_scored
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY
from bond_trainer.opening import Parts, open_parts

FUNCTIONS = """

def opposite(prompts, completions, **kwargs):
    return [-value for value in reward(prompts, completions)]


def keeps_other_letters(prompts, completions, **kwargs):
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(c != "e" for c in text) / (len(text) + 1) for text in texts]
"""


def questions(word: str, start: int, count: int) -> list[tuple[Message, ...]]:
    return [(Message("user", f"{word} {number}"),) for number in range(start, start + count)]


def write_prompts(file: Path, conversations: Sequence[tuple[Message, ...]]) -> Path:
    file.write_text("\n".join(json.dumps({"prompt": m[0].content}) for m in conversations))
    return file


def poisoned_config(folder: Path, model: Path, judge: str = "reward", **gate: Any) -> BondConfig:
    """Gate prompts are "exam n", training prompts "question n"."""
    exam = write_prompts(folder / "exam.jsonl", questions("exam", 0, 16))
    config = config_of(
        folder,
        model,
        gate={"kl_budget_nats": 1000, **gate},
        winners={"learning_rate": 0.03},
        evaluation={"num_prompts": 16, "min_prompts": 8, "gate_prompts": exam},
    )
    with (folder / "rewards.py").open("a") as file:
        file.write(FUNCTIONS)
    judging = config.scorer.model_copy(update={"function": f"{folder / 'rewards.py'}:{judge}"})
    return config.model_copy(update={"judge": judging})


@asynccontextmanager
async def opened(config: BondConfig, folder: Path) -> AsyncIterator[Parts]:
    async with open_parts(config, prompts_file(folder)) as parts:
        publish(parts)
        yield parts


def publish(parts: Parts) -> None:
    for name in (POLICY, ANCHOR):
        parts.engine.publish(name, parts.learner.pair.merged_weights(name))


def learn(parts: Parts, rows: Sequence[TokenRow], steps: int) -> None:
    parts.learner.begin("winners", 1000)
    for _ in range(steps):
        parts.learner.learn_from_winners(rows)
    publish(parts)


def answered(parts: Parts, messages: Sequence[Message], text: str) -> TokenRow:
    """A row in which the prompt, as the engine renders it, is answered with this text."""
    tokenizer = parts.engine._tokenizer
    prompt = tokenizer.apply_chat_template(
        [m.as_dict() for m in messages], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return TokenRow(ids, (*tokenizer(text, add_special_tokens=False)["input_ids"], 1))


def collapse(parts: Parts) -> None:
    """One answer to everything, which the reward likes."""
    rows = [
        answered(parts, m, "eeee") for word in ("exam", "question") for m in questions(word, 500, 4)
    ]
    learn(parts, rows, 60)


async def proposed(parts: Parts) -> tuple[PolicyRecord, list[str]]:
    """What the store has of the proposal, and the names of the checks that failed."""
    held_out = await parts.held_out.resolve(parts.engine, parts.scorers)
    assert held_out is not None
    record = await parts.proposer.propose(1, held_out, {})
    stored = await parts.store.policies.get(record.version)
    assert stored == record
    checks = stored.evaluation["gate"]["checks"]
    refused = [check for check in checks if not check["passed"]]
    if refused:
        assert stored.state is PolicyState.REJECTED
        assert stored.reason == "; ".join(check["sentence"] for check in refused)
    return stored, [check["name"] for check in refused]


NO_COLLAPSE_GUARDS = {"max_added_repetition": 1, "max_added_identical": 1, "min_distinct_ratio": 0}


async def test_one_that_the_proxy_likes_and_the_judge_does_not(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = poisoned_config(tmp_path, tiny_policy_path, "opposite", **NO_COLLAPSE_GUARDS)
    async with opened(config, tmp_path) as parts:
        collapse(parts)
        record, refused = await proposed(parts)
    assert refused == ["judge", "judge_reference"]
    assert "judge's score of v0001 minus v0000 is -" in record.reason
    assert record.evaluation["gate"]["reward_gain_lower"] > 0


async def test_one_that_gives_one_answer_to_everything(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    async with opened(poisoned_config(tmp_path, tiny_policy_path), tmp_path) as parts:
        collapse(parts)
        record, refused = await proposed(parts)
    assert {"identical", "distinct"} <= set(refused) <= {"identical", "distinct", "repetition"}
    assert "the share of identical answers to different prompts is" in record.reason
    assert record.evaluation["gate"]["reward_gain_lower"] > 0


async def test_one_that_learned_nothing(tiny_policy_path: Path, tmp_path: Path) -> None:
    async with opened(poisoned_config(tmp_path, tiny_policy_path), tmp_path) as parts:
        record, refused = await proposed(parts)
    assert refused == ["reward"]
    assert "is +0, lower bound +0 " in record.reason


async def test_one_that_is_better_only_on_its_training_prompts(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = poisoned_config(tmp_path, tiny_policy_path, **NO_COLLAPSE_GUARDS)
    async with opened(config, tmp_path) as parts:
        trained = questions("question", 0, 16)
        other = questions("exam", 500, 16)
        usual = await scored(parts, REFERENCE_VERSION, other)
        rows = [
            TokenRow(g.prompt_token_ids, c.token_ids)
            for g in usual.generations
            for c in g.completions
        ]
        rows += [answered(parts, m, "eeee") for m in trained]
        learn(parts, rows, 40)
        record, refused = await proposed(parts)
        ours, theirs = [await scored(parts, v, trained) for v in (POLICY, REFERENCE_VERSION)]
    on_training = paired_difference(ours.rewards_PS, theirs.rewards_PS)
    assert on_training.cautious_lower(record.evaluation["gate"]["level"]) > 0
    assert "reward" in refused
    assert "not above the smallest gain" in record.reason


async def scored(parts: Parts, version: str, prompts: Sequence[tuple[Message, ...]]) -> Any:
    params = parts.config.sampling.params()
    return await draw_scored(parts.engine, version, prompts, params, 4, 3, parts.scorers)


async def test_one_that_forgot(tiny_policy_path: Path, tmp_path: Path) -> None:
    suite = {
        "function": f"{tmp_path / 'rewards.py'}:keeps_other_letters",
        "prompts": write_prompts(tmp_path / "suite.jsonl", questions("recall", 0, 12)),
        "margin": 0.2,
    }
    config = poisoned_config(tmp_path, tiny_policy_path, suite=suite, **NO_COLLAPSE_GUARDS)
    async with opened(config, tmp_path) as parts:
        assert "recall 3" in parts.openings  # never learned from
        collapse(parts)
        record, refused = await proposed(parts)
    assert refused == ["suite"]
    assert "12 prompts of the suite" in record.reason
    assert record.reason.endswith("beyond the margin of 0.2, it has forgotten")
    assert record.evaluation["gate"]["suite_gain_over_reference"] < -0.2
