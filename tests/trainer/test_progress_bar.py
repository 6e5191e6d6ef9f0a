"""The bar of a run: what it says of given records, and that a real run moves it."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bond_core.store import TrainingRecord
from bond_trainer import TrainingResult, train
from bond_trainer.metrics import CURVE
from bond_trainer.progress_bar import progress_bar, rendered
from bond_trainer.standing import curve_line, evaluation_standing, training_standing

CURVE_METRICS = {
    "eval/best_of_1_reward": 0.5,
    "eval/best_of_2_reward": 0.9,
    "eval/best_of_4_reward": 1.31,
    "eval/best_of_8_reward": 1.67,
    "eval/best_of_16_reward": 1.92,
}
EVALUATED = {
    "eval/version": "v0003",
    "eval/reward_mean": 1.42,
    "eval/kl_nats": 0.81,
    "eval/n_q": 4.3,
    **CURVE_METRICS,
}
STEP = {"train/reward_policy_mean": 1.234, "train/kl_to_anchor": 0.0567}


def record(step: int, metrics: dict[str, Any]) -> TrainingRecord:
    return TrainingRecord(
        run_id="run", state="training", step=step, started_at=0.0, heartbeat_at=0.0,
        metrics=metrics, counts={},
    )  # fmt: skip


def text_of(step: int, metrics: dict[str, Any], max_steps: int = 200) -> list[str]:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as captured:
        console.print(rendered(record(step, metrics), max_steps, 3725.4))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_run_before_its_first_evaluation() -> None:
    assert text_of(50, STEP) == [
        "━━━━━━━━                         50/200 steps 1:02:05 training",
        "last step: reward 1.23, KL to the anchor 0.0567",
    ]
    [head] = text_of(0, {})
    assert head.split() == ["0/200", "steps", "1:02:05", "training"]


def test_a_run_after_an_evaluation() -> None:
    assert text_of(200, {**STEP, **EVALUATED})[2:] == [
        "last version: v0003: reward 1.42 (between Best-of-4 1.31 and Best-of-8 1.67), "
        "KL 0.81 nats, N_q 4.3",
        "Best-of-N of the reference: N=1 0.5, N=2 0.9, N=4 1.31, N=8 1.67, N=16 1.92",
    ]


def test_without_a_maximum_there_are_steps_and_time() -> None:
    assert text_of(12, {}, max_steps=0) == ["12 steps 1:02:05 training"]


@pytest.mark.parametrize(
    ("reward", "place"),
    [
        (0.2, "below the reference's 0.5"),
        (0.5, "between the reference's 0.5 and Best-of-2 0.9"),
        (1.9, "between Best-of-8 1.67 and Best-of-16 1.92"),
        (2.0, "above Best-of-16 1.92"),
    ],
)
def test_the_place_on_the_curve(reward: float, place: str) -> None:
    text = evaluation_standing({**EVALUATED, "eval/reward_mean": reward})
    assert text == f"v0003: reward {reward:.3g} ({place}), KL 0.81 nats, N_q 4.3"


def test_what_an_evaluation_or_objective_lacks_is_left_out() -> None:
    assert evaluation_standing({}) is None
    assert training_standing({}) is None
    assert curve_line({}) is None
    bare = {"eval/version": "v0001", "eval/reward_mean": -1.0, "eval/n_q": None}
    assert evaluation_standing(bare) == "v0001: reward -1, N_q without bound"
    assert training_standing({"train/divergence_per_answer": 0.25}) == (
        "divergence from the teacher 0.25"
    )


def letters(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(completion[-1]["content"].count("e")) for completion in completions]


def test_a_real_run_shows_its_steps_and_the_curve_of_its_reference(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> TrainingResult:
        return train(
            tiny_policy_path, letters, [f"question {i}" for i in range(400)], out_dir=tmp_path,
            max_steps=3, progress=True, prompts_per_step=4, nice=0, lora={"rank": 4, "alpha": 8},
            evaluation={"num_prompts": 8, "min_prompts": 8}, sampling={"max_tokens": 12},
        )  # fmt: skip

    result = run()
    shown = capsys.readouterr().out
    assert "3/3 steps" in shown
    assert "stopped" in shown
    assert re.search(r"^memory estimate\n  model +0.4 MiB\n", shown)
    evaluated = result.metrics[-1]
    words = " ".join(shown.split())  # the console's width breaks lines
    standing = " ".join((evaluation_standing(evaluated) or "none").split())
    assert standing in words
    run()  # goes on where it was, which is the end: the version is shown again
    assert standing in " ".join(capsys.readouterr().out.split())
    # the curve is that of the reference's kept samples: at 1 their mean, at all of them the maximum
    [kept] = (tmp_path / "evaluation").glob("reference-*.json")
    rewards_PS = np.array(json.loads(kept.read_text())["rewards"])
    assert rewards_PS.shape == (8, 16)
    assert evaluated["eval/best_of_1_reward"] == pytest.approx(rewards_PS.mean())
    assert evaluated["eval/best_of_16_reward"] == pytest.approx(rewards_PS.max(axis=1).mean())
    pairs = [np.maximum(rewards_PS[:, i], rewards_PS[:, j]) for i in range(16) for j in range(i)]
    assert len(pairs) == math.comb(16, 2)
    assert evaluated["eval/best_of_2_reward"] == pytest.approx(np.mean(pairs))
    sizes = [n for n in CURVE if f"eval/best_of_{n}_reward" in evaluated]
    assert sizes == [1, 2, 4, 8, 16]


def test_no_bar_where_nobody_watches(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(
        tiny_policy_path, letters, [f"question {i}" for i in range(40)], out_dir=tmp_path,
        max_steps=1, prompts_per_step=2, nice=0, sampling={"max_tokens": 4},
    )  # fmt: skip
    assert capsys.readouterr().out == ""


def test_a_terminal_is_drawn_over() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    with progress_bar(10, console) as listen:
        listen(record(4, STEP))
        listen(record(7, STEP))
    assert "7/10 steps" in file.getvalue()
