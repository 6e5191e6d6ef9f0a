"""TRL's RLOOTrainer on the task that bench/learner.py gives it; runs in TRL's own environment.

    trl-env/bin/python bench/learner_trl.py TASK.json RESULT.json

Defaults of TRL that would be unfair on a CPU are set to what our trainer does: float32, no gradient
checkpointing, no dropout, plain sampling at temperature 1, one update for each batch.
"""

import json
import sys
import time
from pathlib import Path

import datasets
import peft
import torch
import transformers
import trl
from datasets import Dataset
from learner_reward import reward
from peft import LoraConfig
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer


class Clock(TrainerCallback):
    """When each step ended, and what was logged of it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.lengths: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.time())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "completions/mean_length" in logs:
            self.lengths.append(logs["completions/mean_length"])


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    per_step = task["prompts_per_step"] * task["completions_per_prompt"]
    clock = Clock()
    config = RLOOConfig(
        output_dir=task["work"], use_cpu=True, bf16=False, gradient_checkpointing=False,
        use_vllm=False, num_generations=task["completions_per_prompt"], beta=task["beta"],
        num_iterations=1, temperature=1.0, top_p=1.0, top_k=0,
        max_completion_length=task["max_tokens"], per_device_train_batch_size=per_step,
        gradient_accumulation_steps=1, learning_rate=task["learning_rate"],
        lr_scheduler_type="constant_with_warmup", warmup_steps=task["warmup_steps"],
        max_grad_norm=1.0, normalize_advantages=False, mask_truncated_completions=False,
        disable_dropout=True, save_strategy="no", report_to="none", logging_steps=1,
        max_steps=task["steps"], shuffle_dataset=False, seed=task["seed"], disable_tqdm=True,
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=task["model"],
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": p} for p in task["prompts"]]),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    versions = {m.__name__: m.__version__ for m in (torch, transformers, trl, peft, datasets)}
    versions["python"] = sys.version.split()[0]
    found = {"ends": clock.ends, "mean_lengths": clock.lengths, "versions": versions}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
