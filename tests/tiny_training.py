"""What the trainer's tests share: a configuration of seconds, prompts, and a reward to learn."""

import json
from pathlib import Path
from typing import Any

import torch

from bond_core.config import BondConfig
from bond_core.holdout import Split, split_of
from bond_core.types import Message

REWARD = '''
def reward(prompts, completions, **kwargs):
    """The share of the letter e, with the length as a small second term."""
    texts = [completion[-1]["content"] for completion in completions]
    return [text.count("e") / (len(text) + 5) + len(text) * 1e-4 for text in texts]


def broken(prompts, completions, **kwargs):
    raise RuntimeError("no reward today")
'''


def prompts_file(folder: Path, count: int = 400) -> Path:
    """A JSON-lines file of distinct questions, of which a tenth is held out."""
    file = folder / "prompts.jsonl"
    rows = [json.dumps({"prompt": f"question {number}"}) for number in range(count)]
    file.write_text("\n".join(rows))
    return file


def config_of(
    folder: Path, model: Path, engine: dict[str, Any] | None = None, **trainer: Any
) -> BondConfig:
    """A trainer on the tiny model whose reward is the share of a letter."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARD)
    settings: dict[str, Any] = {
        "learning_rate": 0.05,
        "warmup_steps": 2,
        "prompts_per_step": 16,
        "nice": 0,
        "lora": {"rank": 4, "alpha": 8},
        "objective": {"eta": 0.1},
        "evaluation": {"every_steps": 15, "num_prompts": 16, "min_prompts": 8},
        "poll_s": 0.05,
        **trainer,
    }
    return BondConfig.model_validate(
        {
            "model": {"path": model, "name": "tiny"},
            "scorer": {"type": "function", "function": f"{rewards}:reward"},
            "judge": {"type": "function", "function": f"{rewards}:reward"},
            "sampling": {"max_tokens": 16},
            "trainer": settings,
            "data_dir": folder / "data",
            "engine": engine or {"type": "local"},
        }
    )


def factors_of(config: BondConfig) -> dict[str, torch.Tensor]:
    """The policy's and anchor's factors in the newest checkpoint."""
    newest = sorted(config.checkpoints_dir.glob("step-*"))[-1]
    learner = torch.load(newest / "learner.pt", weights_only=True)["learner"]
    return {
        f"{adapter}.{name}": tensor
        for adapter in ("policy", "anchor")
        for name, tensor in learner[adapter].items()
    }


def messages_of(split: Split, count: int) -> list[tuple[Message, ...]]:
    """The first `count` conversations "question i" on one side of the split."""
    found: list[tuple[Message, ...]] = []
    number = 0
    while len(found) < count:
        conversation = (Message("user", f"question {number}"),)
        if split_of(conversation) is split:
            found.append(conversation)
        number += 1
    return found
