"""`bond choose-n` on the tiny model, end to end."""

import json
from pathlib import Path

import pytest
from tiny_training import REWARD, prompts_file
from typer.testing import CliRunner

from bond_cli.commands.choose_n import peak_sentence
from bond_cli.main import app
from bond_core.choosing_n import Peak
from bond_core.over_optimisation import RewardCurve


@pytest.fixture
def arguments(tiny_policy_path: Path, tmp_path: Path) -> list[str]:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        REWARD
        + '''

def shorter(prompts, completions, **kwargs):
    """Falls as the first term of the other rises."""
    return [-value for value in reward(prompts, completions)]
'''
    )
    return [
        "choose-n", str(tiny_policy_path), "--reward-model", f"{rewards}:reward",
        "--judge", f"{rewards}:shorter", "--prompts", str(prompts_file(tmp_path)),
        "--num-prompts", "6", "--samples", "8", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_a_judge_that_only_falls_recommends_one_sample(arguments: list[str], tmp_path: Path):
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "N = 1" in ran.output
    found = json.loads((tmp_path / "out" / "choose-n.json").read_text())
    assert found["points"] == [1, 2, 3, 4]
    assert found["decided_by"] == "judge"
    assert found["recommended"] == 1
    assert found["means"]["judge"] == pytest.approx([-v for v in found["means"]["proxy"]])
    assert found["means"]["proxy"] == sorted(found["means"]["proxy"])
    assert (tmp_path / "out" / "choose-n.png").stat().st_size > 10_000


def test_a_budget_below_one_answer_is_refused(arguments: list[str]):
    ran = CliRunner().invoke(app, [*arguments, "--budget", "1"])
    assert ran.exit_code == 1
    assert "less than one answer" in ran.output


def test_what_is_said_of_a_peak():
    curve = RewardCurve(1.0, 0.2)
    said = peak_sentence("gold", Peak(8, (6.0, 12.0), False, curve, 7.9, (5.0, 13.0)))
    assert said == (
        "gold is highest at N = 8 (95 %: 6 to 12); Gao's curve peaks at 7.9 (5.0 to 13.0)."
    )
    said = peak_sentence("proxy", Peak(32, (32.0, 32.0), True, curve, None, (None, None)))
    assert "its peak may lie beyond; Gao's curve has no peak at any N of use." in said
    said = peak_sentence("gold", Peak(8, (6.0, 12.0), False, curve, 3.0, (2.0, None)))
    assert "(2.0 to ∞); the two disagree" in said
