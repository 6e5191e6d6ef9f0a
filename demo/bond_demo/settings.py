"""The configuration of the demo, as the `bond` command uses it when no model is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bond_core.types import Message
from bond_demo import worlds
from bond_demo.rubric import gold_reward

DEFAULT_DATA_DIR = Path("bond-demo-data")
DEFAULT_RESULTS_DIR = Path("demo-results")
MODEL_NAME = "demo"
BEST_OF = 8
MAX_TOKENS = 80
"""The longest answers of the shipped policy end well before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What `bond demo` was asked to do."""

    duration_s: float | None
    """Seconds of traffic; None goes on until Ctrl-C."""
    results_dir: Path = DEFAULT_RESULTS_DIR
    rate_per_s: float = 3.0
    """Requests per second of all users together, if answers take no time."""
    num_users: int = 4
    """Conversations under way at once, at most."""
    seed: int = 20240722
    """Of the users' prompts and pauses."""
    evaluation_prompts: int = 192
    """Held-out prompts of the final evaluation; fewer if its time is up first."""
    evaluation_limit_s: float = 50.0
    samples_per_prompt: int = 4
    """Of the distilled policy."""
    reference_samples_per_prompt: int = 16
    """Largest n of the Best-of-n curve."""

    def reference_samples(self, best_of: int) -> int:
        """Reference answers to draw for each prompt: enough for the curve, and for Best-of-N to
        have one more answer to be compared with."""
        return max(self.reference_samples_per_prompt, best_of + 1)


def demo_config(data_dir: Path | None = None) -> dict[str, Any]:
    """Flags for `load_config` that serve and train the demo world.

    Two thirds of the requests go to the arms that are compared, the rest to the reference, so
    that the table has something to compare them with. Raises `ModelLoadError` if the world is
    missing from the installation.
    """
    prompts = worlds.world_path() / "prompts"
    return {
        "model": {"path": worlds.policy_path(), "name": MODEL_NAME},
        "scorer": {"type": "classifier", "path": worlds.proxy_path()},
        "judge": {"type": "classifier", "path": worlds.judge_path()},
        "gold": {"type": "function", "function": "bond_demo.settings:gold_rewards"},
        "engine": {"type": "local", "threads": 1},
        "sampling": {"max_tokens": MAX_TOKENS},
        "arms": {
            "best_of": BEST_OF,
            "split": {"reference": 0.15, "bon": 0.3, "distilled": 0.55},
        },
        "trainer": {
            # The log-ratio of whole answers: what docs/training.md measured. The exact KL costs a
            # pass more, and at this pace gave no better a policy for its time.
            "objective": {
                "type": "jbond",
                "eta": 0.05,
                "num_anchor_samples": 4,
                "kl": "sequence",
            },
            "lora": {"rank": 16, "freeze_a": False},
            "winners": {"learning_rate": 8e-3},
            "evaluation": {
                "every_steps": 15,
                "reference_samples_per_prompt": 8,
                "gate_prompts": prompts / "gate.jsonl",
                "report_prompts": prompts / "report.jsonl",
            },
            "learning_rate": 1e-3,
            "prompts_per_step": 32,
        },
        "data_dir": data_dir if data_dir is not None else DEFAULT_DATA_DIR,
    }


def gold_rewards(
    prompts: Sequence[Sequence[dict[str, str]]],
    completions: Sequence[Sequence[dict[str, str]]],
    **_: object,
) -> list[float]:
    """The rubric as a reward function: one number for each conversation and its answer."""
    return [
        gold_reward(
            # the role is one of the world's own prompts
            [Message(turn["role"], turn["content"]) for turn in prompt],  # type: ignore[arg-type]
            completion[-1]["content"],
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
