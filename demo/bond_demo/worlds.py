"""The door to the demo world: where its models lie, its prompts, its log and its gold reward.

Nothing here loads a model, so importing it is cheap.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bond_core.errors import ModelLoadError
from bond_core.types import Message
from bond_demo.prompts import HeldOutPrompt, read_held_out_prompts, traffic, training_questions
from bond_demo.rubric import gold_reward

__all__ = [
    "gate_prompts",
    "gold_reward",
    "judge_path",
    "policy_path",
    "proxy_path",
    "report_prompts",
    "seed_log",
    "traffic_prompts",
    "training_prompts",
    "world_path",
]


def world_path() -> Path:
    """The folder of the shipped world. Raises `ModelLoadError` if the package lies without it."""
    folder = Path(__file__).parent / "world"
    if not folder.is_dir():
        raise ModelLoadError(
            f"the demo world is missing at {folder}; make it with "
            f"`python -m bond_demo.recipe --out {folder}`, or reinstall the `demo` extra"
        )
    return folder


def policy_path() -> Path:
    """The reference policy: a causal language model with its chat tokenizer."""
    return world_path() / "policy"


def proxy_path() -> Path:
    """The reward model that selects and trains."""
    return world_path() / "proxy"


def judge_path() -> Path:
    """The second reward model, for the gate and for experiments; training never sees it."""
    return world_path() / "judge"


def traffic_prompts(seed: int) -> Iterator[tuple[Message, ...]]:
    """Endless distinct conversations as users would start them; any split may occur, held-out
    templates never."""
    return traffic(seed)


def training_prompts(count: int, seed: int) -> list[tuple[Message, ...]]:
    """Distinct conversations of the training split."""
    return [question.messages for question in training_questions(count, seed)]


def gate_prompts() -> list[HeldOutPrompt]:
    """The prompts that promotions are decided on."""
    return read_held_out_prompts(world_path() / "prompts" / "gate.jsonl")


def report_prompts() -> list[HeldOutPrompt]:
    """The prompts that published numbers come from."""
    return read_held_out_prompts(world_path() / "prompts" / "report.jsonl")


def seed_log() -> Iterator[dict[str, Any]]:
    """Rows of a past log of Best-of-8 traffic, in order.

    Each has `messages`, `prompt_token_ids` and `candidates`; a candidate has `token_ids`, `text`,
    `finish_reason`, `logprob` (nats, whole answer) and `score` (raw, by the proxy).
    """
    with gzip.open(world_path() / "seed_log.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
