"""A few real steps of each objective through a training run on the tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import best_of_n
from tiny_training import config_of, factors_of, messages_of, prompts_file
from transformers import AutoModelForCausalLM

from bond_core.errors import ConfigError
from bond_core.holdout import Split
from bond_core.store import TrainingRecord, open_store
from bond_trainer import run_training
from bond_trainer.metrics_log import read_metrics


@pytest.mark.parametrize(
    ("objective", "anchor_moves"),
    [
        ({"type": "bond", "n": 2, "num_anchor_samples": 3}, False),
        ({"type": "bond", "n": 2, "num_anchor_samples": 3, "anchor_every_steps": 2}, True),
        ({"type": "rloo", "num_policy_samples": 2}, False),
    ],
    ids=["bond", "iterated bond", "rloo"],
)
async def test_objective_trains(
    tiny_policy_path: Path, tmp_path: Path, objective: dict[str, Any], anchor_moves: bool
):
    config = config_of(
        tmp_path,
        tiny_policy_path,
        objective=objective,
        evaluation={"min_prompts": 1000, "num_prompts": 1000},
    )
    await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=3)
    factors = factors_of(config)
    moved = {
        adapter: max(
            float(tensor.abs().max())
            for name, tensor in factors.items()
            if name.startswith(adapter) and "lora_A" not in name
        )
        for adapter in ("policy", "anchor")
    }
    assert moved["policy"] > 0
    assert (moved["anchor"] > 0) == anchor_moves
    same = all(
        torch.equal(tensor, factors[name.replace("policy", "anchor", 1)])
        for name, tensor in factors.items()
        if name.startswith("policy.")
    )
    assert not same  # the third step moved the policy past the anchor of the second


async def test_distillation_learns_from_another_model(tiny_policy_path: Path, tmp_path: Path):
    """The teacher is the student's base with other weights; its divergence falls."""
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_policy_path, teacher)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    model.save_pretrained(teacher)
    first, last = [await loss_after(steps, tiny_policy_path, tmp_path, teacher) for steps in (1, 8)]
    assert last < 0.9 * first


async def loss_after(steps: int, student: Path, folder: Path, teacher: Path) -> float:
    """The divergence per token that the last of some steps saw."""
    own = folder / f"steps-{steps}"
    own.mkdir()
    config = config_of(
        own,
        student,
        objective={"type": "gkd", "teacher": str(teacher), "beta": 0.0},
        learning_rate=0.02,
        evaluation={"min_prompts": 1000, "num_prompts": 1000},
    )
    records: list[TrainingRecord] = []
    await run_training(
        config, prompts_file=prompts_file(folder), max_steps=steps, on_progress=records.append
    )
    return float(records[-1].metrics["train/loss"])


async def test_a_teacher_of_another_tokenizer_is_refused(tiny_policy_path: Path, tmp_path: Path):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_policy_path, teacher)
    file = teacher / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "chat_template": "{{ messages[0].content }}"}))
    for other in teacher.glob("chat_template*"):
        other.unlink()
    config = config_of(
        tmp_path, tiny_policy_path, objective={"type": "gkd", "teacher": str(teacher)}
    )
    with pytest.raises(ConfigError, match=r"trainer\.objective\.teacher: the tokenizer"):
        await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=1)


async def test_distilling_the_live_version_needs_one(tiny_policy_path: Path, tmp_path: Path):
    config = config_of(tmp_path, tiny_policy_path, objective={"type": "gkd"})
    with pytest.raises(ConfigError, match="no version is live yet"):
        await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=1)


async def test_logged_answers_stand_for_the_anchor_until_it_moves(
    tiny_policy_path: Path, tmp_path: Path
):
    """They are the reference's: after a hard update the anchor is drawn from, for every prompt."""
    config = config_of(
        tmp_path,
        tiny_policy_path,
        objective={
            "type": "bond", "n": 2, "num_anchor_samples": 4, "num_policy_samples": 1,
            "baseline": "batch", "anchor_every_steps": 2,
        },
        winners={"enabled": False},
        prompts_per_step=8,
        evaluation={"min_prompts": 1000, "num_prompts": 1000},
    )  # fmt: skip
    store = await open_store(config.store_url)
    rows = [
        best_of_n(f"row-{number}", 4, messages=messages)
        for number, messages in enumerate(messages_of(Split.TRAIN, 40))
    ]
    await store.completions.record_many(rows)
    await store.close()
    await run_training(config, max_steps=4)
    drawn = [row["rollout/samples"] for row in read_metrics(config.metrics_dir)]
    assert drawn == [8, 8, 8 * 5, 8 * 5]
