"""What the bar says, for given records and for a real run."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tiny_training import REWARD, prompts_file

from bond_core.store.records import TrainingRecord
from bond_trainer import train
from bond_trainer.progress_bar import ProgressBar, evaluation_sentence, training_sentence

CURVE = {
    "eval/best_of_1_reward": -0.61,
    "eval/best_of_2_reward": 0.26,
    "eval/best_of_16_reward": 2.05,
    "eval/best_of_4_reward": 0.93,
}


def record(step: int, **metrics: object) -> TrainingRecord:
    return TrainingRecord(
        run_id="r", state="training", step=step, started_at=0.0, heartbeat_at=1.0, metrics=metrics
    )


@pytest.mark.parametrize(
    ("reward", "where"),
    [
        (0.5, "(between Best-of-2 0.260 and Best-of-4 0.930)"),
        (0.0, "(between the reference -0.610 and Best-of-2 0.260)"),
        (-1.0, "(below the reference -0.610)"),
        (3.0, "(above Best-of-16 2.050)"),
    ],
)
def test_an_evaluation_stands_beside_the_curve(reward: float, where: str) -> None:
    found = {**CURVE, "eval/reward_mean": reward, "eval/kl_nats": 0.444, "eval/n_q": 2.345}
    assert evaluation_sentence(found) == f"reward {reward:.3f} {where}, KL 0.44 nats, N_q 2.3"


def test_before_anything_was_measured() -> None:
    assert evaluation_sentence({}) == "not evaluated yet"
    assert training_sentence({}) == ""


def test_an_infinite_n_is_said() -> None:
    found = {"eval/reward_mean": 1.0, "eval/n_q": None, "eval/kl_nats": 2.0}
    assert evaluation_sentence(found) == "reward 1.000 , KL 2.00 nats, N_q beyond what is seen"


def test_the_bar_counts_and_keeps_a_line_for_each_version() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=160, force_terminal=True, color_system=None)
    with ProgressBar(max_steps=8, console=console) as bar:
        bar.update(record(2, **{"train/reward_policy_mean": 0.25, "train/log_ratio_mean": 0.5}))
        evaluated = {**CURVE, "eval/version": "v0001", "eval/reward_mean": 0.5, "eval/n_q": 2.0}
        for step in (4, 5):  # the same version twice: one line
            bar.update(record(step, **evaluated))
    shown = screen.getvalue()
    assert "5/8" in shown
    assert shown.count("v0001, step 4: reward 0.500 (between Best-of-2") == 1
    assert "v0001, step 5" not in shown


def test_a_real_run_shows_its_steps_and_its_version(
    tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rewards.py").write_text(REWARD)
    train(
        tiny_policy_path,
        f"{tmp_path / 'rewards.py'}:reward",
        prompts_file(tmp_path),
        out_dir=tmp_path / "out",
        max_steps=2,
        sampling={"max_tokens": 8},
        prompts_per_step=4,
        evaluation={"num_prompts": 8, "min_prompts": 8},
        nice=0,
        progress=True,
    )
    shown = capsys.readouterr().out
    assert "2/2" in shown
    assert "v0001, step 2: reward" in shown
