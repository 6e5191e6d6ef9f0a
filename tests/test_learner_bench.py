"""The arithmetic of bench/learner.py: warm-up left out, rates, and ratios of the same round."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from learner import WARM_UP, measured, table  # a script, beside the packages

TASK = {"prompts_per_step": 4, "completions_per_prompt": 5}


def found(seconds_per_step: float, **more: Any) -> dict[str, Any]:
    """Three slow steps of warm-up, then four."""
    warm = [100.0 * (i + 1) for i in range(WARM_UP)]
    ends = [*warm, *(warm[-1] + seconds_per_step * (i + 1) for i in range(4))]
    lengths = [999.0] * WARM_UP + [10.0, 20.0, 30.0, 20.0]
    return {"ends": ends, "mean_lengths": lengths, "versions": {}, **more}


def test_rates_are_of_the_steps_after_the_warm_up() -> None:
    rates = measured(found(2.0), TASK)
    assert rates["seconds_per_step"] == 2.0
    assert rates["completions_per_s"] == 10.0
    assert rates["generated_tokens_per_s"] == 200.0
    assert rates["steps_timed"] == 4
    assert "shares" not in rates


def test_shares_are_of_all_the_time_and_trained_tokens_of_learning_alone() -> None:
    seconds = {"generate": [9.0] * 3 + [0.5] * 4, "train": [9.0] * 3 + [1.0] * 4}
    rates = measured(found(2.0, seconds=seconds, trained_tokens=[9] * 3 + [300] * 4), TASK)
    assert rates["shares"] == {"generate": 0.25, "train": 0.5, "other": 0.25}
    assert rates["trained_tokens_per_s"] == 300.0


def test_a_step_that_lost_completions_is_not_counted_as_whole() -> None:
    with pytest.raises(SystemExit, match="other than 20"):
        measured(found(2.0, completions=[20] * 6 + [19]), TASK)


def test_ratios_are_of_the_same_round() -> None:
    rounds = {
        "trl": [measured(found(s), TASK) for s in (4.0, 8.0, 2.0)],
        "rloo": [measured(found(s), TASK) for s in (2.0, 2.0, 2.0)],
    }
    trl, rloo = table(rounds).splitlines()[1:]
    assert trl.split()[:2] == ["trl", "5.0"]
    assert rloo.endswith("2.00 (1.00 to 4.00)")
