"""The online levels: what a stream of challengers without gain, and one with a gain, meets."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from bond_core.config import EvaluationConfig, GateConfig
from bond_trainer.gate import decide
from bond_trainer.gate_inputs import GateInputs
from bond_trainer.gate_levels import lond_level, prompts_needed
from bond_trainer.variety import Variety

NUM_PROMPTS = EvaluationConfig().num_prompts
NUM_SAMPLES = EvaluationConfig().samples_per_prompt
VARIED = Variety(repeated_share=0.05, identical_share=0.02, distinct_share=0.8)
SEEN = GateInputs(
    challenger="v0002",
    incumbent="v0001",
    challenger_rewards=np.zeros(NUM_PROMPTS),
    incumbent_rewards=np.zeros(NUM_PROMPTS),
    challenger_kl=np.ones(NUM_PROMPTS),
    challenger_tokens=np.full(NUM_PROMPTS, 20),
    reference_tokens=np.full(NUM_PROMPTS, 20),
    challenger_variety=VARIED,
    reference_variety=VARIED,
    challenger_truncated_share=0.0,
    reference_truncated_share=0.0,
)


def first_promotions(differences: npt.NDArray[np.float64], num_before: int = 0) -> list[int | None]:
    """The gate that promotes first in each run, of `(runs, gates, prompts)` paired differences.

    The incumbent stays until then, so every gate before has had no promotions before it. Gates
    whose t is below 1.65, under every quantile at a level of 5 % and below, cannot pass and are not
    put to `decide`.
    """
    errors = differences.std(axis=2, ddof=1) / math.sqrt(differences.shape[2])
    open_RG = differences.mean(axis=2) > 1.65 * errors
    found: list[int | None] = []
    for run, gates in enumerate(open_RG):
        found.append(None)
        for gate in np.flatnonzero(gates):
            decision = decide(
                replace(
                    SEEN,
                    challenger_rewards=differences[run, gate],
                    incumbent_rewards=np.zeros(differences.shape[2]),
                ),
                GateConfig(),
                num_challengers_before=num_before + int(gate),
                num_promotions_before=0,
            )
            if decision.promote:
                found[-1] = int(gate) + 1
                break
    return found


@pytest.mark.parametrize("law", ["normal", "heavy", "skewed"])
def test_200_challengers_without_gain_leave_the_incumbent_in_95_of_100_runs(law: str) -> None:
    """400 runs of 200 gates. A fixed 5 % would promote one in every run.

    `heavy` is Student's t with 3 degrees of freedom; `skewed` many small gains that rare great
    losses make up for: an exponential law of losses, averaged over 4 samples per prompt.
    """
    generator = np.random.default_rng(5)
    promoted, num_runs, chunk = 0, 400, 40
    for _ in range(num_runs // chunk):
        shape = (chunk, 200, NUM_PROMPTS)
        if law == "normal":
            differences = generator.normal(size=shape)
        elif law == "heavy":
            differences = generator.standard_t(3, size=shape)
        else:
            differences = 1 - generator.standard_gamma(NUM_SAMPLES, size=shape) / NUM_SAMPLES
        promoted += sum(gate is not None for gate in first_promotions(differences))
    assert promoted <= 0.05 * num_runs


@pytest.mark.parametrize(("effect", "within", "share"), [(0.5, 2, 0.97), (0.25, 10, 0.80)])
def test_a_real_gain_passes_within_a_stated_number_of_gates(
    effect: float, within: int, share: float
) -> None:
    """`effect` in standard deviations of the paired difference, default number of prompts."""
    generator = np.random.default_rng(6)
    differences = generator.normal(size=(1000, within, NUM_PROMPTS)) + effect
    found = first_promotions(differences)
    assert sum(gate is not None for gate in found) >= share * 1000


def test_after_many_refusals_the_number_of_prompts_that_is_stated_finds_the_gain() -> None:
    level = lond_level(GateConfig().level, 19, 0)
    needed = prompts_needed(level, 0.25)
    assert needed == 343
    generator = np.random.default_rng(7)
    differences = generator.normal(size=(400, 1, needed)) + 0.25
    passed = sum(gate is not None for gate in first_promotions(differences, num_before=19))
    assert 0.72 <= passed / 400 <= 0.86


def test_prompts_needed_by_the_tables_of_the_normal_law() -> None:
    assert prompts_needed(0.05, 1.0, power=0.8) == math.ceil((1.6449 + 0.8416) ** 2)
    for level, effect in ((0.05, 0.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match="effect"):
            prompts_needed(level, effect)


def test_levels_add_up_to_the_whole_level() -> None:
    levels = [lond_level(0.05, before, 0) for before in range(20_000)]
    assert sum(levels) == pytest.approx(0.05, abs=2e-6)
    assert sum(levels) < 0.05
    assert levels == sorted(levels, reverse=True)
    assert lond_level(0.05, 9, 4) == pytest.approx(5 * levels[9])
    with pytest.raises(ValueError, match="3 promotions of 2 challengers"):
        lond_level(0.05, 2, 3)
