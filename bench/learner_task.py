"""Our trainer on the task that bench/learner.py gives it.

python bench/learner_task.py OBJECTIVE TASK.json RESULT.json
"""

import json
import sys
from pathlib import Path

import torch

from bond_core.config import ObjectiveConfig
from bond_trainer import JBondConfig, RlooConfig, train


def reward_file() -> Path:
    return Path(__file__).with_name("learner_reward.py")


def objective_of(name: str, completions: int, beta: float) -> ObjectiveConfig:
    """As many completions per prompt for each: for J-BOND one of the policy, the rest the
    anchor's."""
    if name == "rloo":
        return RlooConfig(num_policy_samples=completions, kl_coefficient=beta)
    return JBondConfig(num_policy_samples=1, num_anchor_samples=completions - 1)


def main() -> None:
    name, task_file, result = sys.argv[1:]
    task = json.loads(Path(task_file).read_text())
    found = train(
        task["model"],
        f"{reward_file()}:reward",
        task["prompts"],
        objective=objective_of(name, task["completions_per_prompt"], task["beta"]),
        out_dir=task["work"],
        max_steps=task["steps"],
        sampling={"max_tokens": task["max_tokens"]},
        progress=False,
        learning_rate=task["learning_rate"],
        warmup_steps=task["warmup_steps"],
        prompts_per_step=task["prompts_per_step"],
        lora={"rank": 16, "alpha": 32, "freeze_a": False},
        micro_batch_tokens=16384,
        checkpoint_every_steps=10_000,
        evaluation={"every_steps": 10_000, "num_prompts": 4, "min_prompts": 4,
                    "samples_per_prompt": 1, "reference_samples_per_prompt": 2},
        seed=task["seed"],
        threads=task["threads"],
        nice=0,
    )  # fmt: skip
    rows = [row for row in found.metrics if "seconds/train" in row]
    values = {
        "ends": [row["time"] for row in rows],
        "mean_lengths": [row["rollout/tokens"] / row["rollout/samples"] for row in rows],
        "seconds": {
            part: [row[f"seconds/{part}"] for row in rows]
            for part in ("generate", "score", "train")
        },
        "completions": [row["rollout/samples"] for row in rows],
        "trained_tokens": [row["rollout/tokens"] for row in rows],
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }
    Path(result).write_text(json.dumps(values))


if __name__ == "__main__":
    main()
