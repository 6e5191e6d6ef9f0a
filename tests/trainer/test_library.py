"""`train` from a script and from a running loop, and the metrics that it leaves."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bond_core.errors import ConfigError
from bond_trainer import JBondConfig, RlooConfig, TrainingResult, train
from bond_trainer.metrics_log import MetricsLog, read_metrics

PROMPTS = [f"question {number}" for number in range(400)]
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.05,
    "warmup_steps": 1,
    "prompts_per_step": 8,
    "nice": 0,
    "lora": {"rank": 4, "alpha": 8},
    "evaluation": {"every_steps": 4, "num_prompts": 8, "min_prompts": 8},
    "sampling": {"max_tokens": 12},
}


def letters(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    texts = [completion[-1]["content"] for completion in completions]
    return [text.count("e") / (len(text) + 5) + len(text) * 1e-4 for text in texts]


def trained(model: Path, out: Path, **changed: Any) -> TrainingResult:
    return train(
        model, letters, PROMPTS, objective=JBondConfig(eta=0.1), out_dir=out,
        **{"max_steps": 4, **SETTINGS, **changed},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
async def test_trains_inside_a_running_loop_and_leaves_an_adapter(
    tiny_policy_path: Path, tmp_path: Path
):
    result = trained(tiny_policy_path, tmp_path / "out", tensorboard=True)
    assert result.adapter == tmp_path / "out" / "adapters" / "v0001"
    assert result.evaluation["kl_nats"] > 0
    steps = [row["step"] for row in result.metrics if "train/loss" in row]
    assert steps == [1, 2, 3, 4]
    assert result.metrics[-1]["eval/reward_mean"] == result.evaluation["reward_mean"]
    assert result.metrics[0]["rollout/samples"] == 8 * 5
    assert list((tmp_path / "out" / "training").glob("events.out.tfevents.*"))
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    PeftModel.from_pretrained(base, str(result.adapter))


def test_going_on_leaves_every_step_once(tiny_policy_path: Path, tmp_path: Path):
    trained(tiny_policy_path, tmp_path / "out", max_steps=2)
    result = trained(tiny_policy_path, tmp_path / "out", max_steps=4)
    assert [row["step"] for row in result.metrics if "train/loss" in row] == [1, 2, 3, 4]


def test_other_objectives_and_kinds_of_prompts(tiny_policy_path: Path, tmp_path: Path):
    rows: list[Any] = [
        PROMPTS[0],
        {"prompt": PROMPTS[1], "other": 1},
        [{"role": "user", "content": PROMPTS[2]}],
        {"messages": [{"role": "user", "content": PROMPTS[3]}]},
        *PROMPTS[4:],
    ]
    result = train(
        tiny_policy_path, letters, rows, objective=RlooConfig(type="rloo"),
        out_dir=tmp_path / "out", max_steps=1, **SETTINGS,
    )  # fmt: skip
    lines = (tmp_path / "out/prompts.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert written[:2] == [{"prompt": PROMPTS[0]}, {"prompt": PROMPTS[1]}]
    assert written[2] == written[2] | {"messages": [{"role": "user", "content": PROMPTS[2]}]}
    assert "train/advantage_abs_mean" in result.metrics[0]
    with pytest.raises(ConfigError, match="prompt 1 is 7: expected a text"):
        train(tiny_policy_path, letters, ["a", 7], out_dir=tmp_path / "other")  # type: ignore[list-item]


def test_importing_the_library_does_not_import_torch():
    code = "import sys, bond_trainer; assert bond_trainer.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path: Path):
    log = MetricsLog(tmp_path)
    log.open_at(0)
    for step in range(1, 6):
        log.append(step, {"train/loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tra')
    log.open_at(3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    log.append(4, {"train/loss": 9.0})
    assert read_metrics(tmp_path)[-1]["train/loss"] == 9.0


def test_wrong_settings_are_named_with_the_nearest_right_one(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    def reward(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(ConfigError, match=r"'trainer.learning_rat'; did you mean 'learning_rate'"):
        train(tiny_policy_path, reward, ["a"], out_dir=tmp_path, learning_rat=1e-3)
    with pytest.raises(ConfigError, match=r"'trainer.objective.*etta'"):
        train(tiny_policy_path, reward, ["a"], out_dir=tmp_path, objective={"etta": 0.1})


def test_what_cannot_train_is_an_error_and_not_an_empty_result(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    def broken(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        return [1.0]

    few = PROMPTS[:12]
    with pytest.raises(ConfigError, match="nothing was learned"):
        train(tiny_policy_path, broken, few, out_dir=tmp_path / "a", progress=False, **SETTINGS)
    with pytest.raises(ConfigError, match="put a single text into a list"):
        train(tiny_policy_path, letters, "Where is it?", out_dir=tmp_path / "b")
    with pytest.raises(ConfigError, match="max_steps is -1"):
        train(tiny_policy_path, letters, few, out_dir=tmp_path / "c", max_steps=-1)


def test_another_file_of_prompts_is_refused_by_the_checkpoint(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """The place in the prompts is counted in lines: with other lines it would be another place."""
    trained(tiny_policy_path, tmp_path, max_steps=2)
    with pytest.raises(ConfigError, match=r"made with other settings.*prompts is '"):
        train(
            tiny_policy_path, letters, ["another", *PROMPTS], objective=JBondConfig(eta=0.1),
            out_dir=tmp_path, max_steps=4, progress=False, **SETTINGS,
        )  # fmt: skip


def test_an_interrupt_ends_the_run_at_a_step_with_a_checkpoint(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    script = f"""
import pathlib
from bond_trainer import train
seen = pathlib.Path({str(tmp_path / "seen")!r})

def reward(prompts, completions, **kwargs):
    seen.write_text("scored")
    return [float(len(c[-1]["content"])) for c in completions]

train({str(tiny_policy_path)!r}, reward, {PROMPTS!r}, out_dir={str(tmp_path / "out")!r},
      progress=False, prompts_per_step=4, nice=0, max_epochs=1000,
      sampling={{"max_tokens": 8}}, evaluation={{"every_steps": 10000}})
"""
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "seen").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert len(list((tmp_path / "out" / "checkpoints").glob("step-*"))) == 1
