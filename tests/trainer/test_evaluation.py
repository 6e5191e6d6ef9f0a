"""Metrics of a policy against the reference, with values computed by hand or by enumeration."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bond_core.config import LoraConfig
from bond_core.types import Completion, Generation
from bond_trainer.draws import Draws
from bond_trainer.kl import kl_to_reference
from bond_trainer.lora import ANCHOR, POLICY, LoraPair
from bond_trainer.metrics import best_of_n_curve, best_of_n_metrics, policy_metrics
from bond_trainer.variety import Variety


def draws(rewards: list[list[float]], tokens: float = 10, **extra: object) -> Draws:
    values = np.array(rewards, dtype=np.float64)
    return Draws(
        rewards_PS=values,
        judge_PS=extra.get("judge"),  # type: ignore[arg-type]
        gold_PS=extra.get("gold"),  # type: ignore[arg-type]
        num_tokens_PS=np.full_like(values, tokens),
        distinct_share=1.0,
        truncated_share=0.0,
        variety=Variety(repeated_share=0.0, identical_share=0.0, distinct_share=1.0),
    )


REFERENCE = draws([[1, 2, 3, 4], [10, 20, 30, 40]])


def test_quantile_effective_n_and_win_rates_by_hand() -> None:
    ours = draws([[3.5, 2.0], [25.0, 45.0]], tokens=15)
    kl_PS = np.array([[0.5, 1.0], [0.7, 0.8]])
    found = policy_metrics(ours, REFERENCE, kl_PS, best_of=2)
    # 3.5 beats 3 of 4, 2 beats 1 and ties 1, 25 beats 2, 45 beats 4
    assert found["quantile_mean"] == pytest.approx((0.75 + 0.375 + 0.5 + 1.0) / 4)
    assert found["n_q"] == pytest.approx(found["quantile_mean"] / (1 - found["quantile_mean"]))
    assert found["win_rate_vs_reference"] == found["quantile_mean"]
    # a win over Best-of-2 is a win over both of a pair: 3, (0 + ½), 1 and 6 of 6 pairs
    assert found["win_rate_vs_best_of_n"] == pytest.approx((3 + 0.5 + 1 + 6) / 24)
    assert found["reward_mean"] == pytest.approx((2.75 + 35) / 2)
    assert found["kl_nats"] == pytest.approx(0.75)
    n_kl = found["n_kl"]
    assert math.log(n_kl) - (n_kl - 1) / n_kl == pytest.approx(0.75)
    assert found["kl_efficiency"] == pytest.approx(found["n_q"] / n_kl)
    assert (found["length_ratio"], found["tokens_per_answer"]) == (1.5, 15)
    assert (found["prompts"], found["samples"]) == (2, 4)


def test_intervals_are_over_prompts() -> None:
    found = policy_metrics(draws([[1, 1], [3, 3]]), draws([[0, 9], [0, 9]]), None, best_of=2)
    # prompt means 1 and 3: standard error 1, Student t with one degree of freedom 12.706
    assert found["reward_se"] == pytest.approx(1.0)
    assert found["reward_ci95"] == pytest.approx([2 - 12.7062, 2 + 12.7062], abs=1e-3)
    assert "kl_nats" not in found


def test_a_policy_above_every_reference_sample_has_no_finite_n() -> None:
    found = policy_metrics(draws([[9, 9], [99, 99]]), REFERENCE, np.full((2, 2), 1.0), best_of=8)
    assert found["quantile_mean"] == 1.0
    assert found["n_q"] is None
    assert found["kl_efficiency"] is None
    assert "win_rate_vs_best_of_n" not in found  # 4 reference samples cannot make a Best-of-8


def test_best_of_n_reports_the_judge_of_what_the_scorer_selects() -> None:
    gold = np.array([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 8.0]])
    reference = draws(REFERENCE.rewards_PS.tolist(), gold=gold)
    found = best_of_n_metrics(reference, 4)
    assert found["reward_mean"] == (4 + 40) / 2
    assert found["gold_mean"] == (1 + 8) / 2
    assert found["kl_nats"] == pytest.approx(math.log(4) - 3 / 4)
    assert list(best_of_n_curve(reference)) == ["1", "2", "4"]
    assert best_of_n_curve(reference)["1"]["reward_mean"] == REFERENCE.rewards_PS.mean()


@pytest.fixture
def pair(tiny_policy_path: Path) -> LoraPair:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path, dtype=torch.float32)
    made = LoraPair(base, LoraConfig(rank=4, alpha=8))
    with torch.no_grad():
        for factor in made.factors(POLICY).values():
            factor.normal_(std=0.05)
    return made


def generation(prompt: tuple[int, ...], *answers: tuple[int, ...]) -> Generation:
    completions = [Completion("", answer, (0.0,) * len(answer), "stop") for answer in answers]
    return Generation(prompt, tuple(completions))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_is_the_sum_of_exact_token_kls(pair: LoraPair, temperature: float) -> None:
    prompt, answer = (3, 40, 41, 4), (50, 51, 1)
    found = kl_to_reference(pair, POLICY, [generation(prompt, answer)], temperature)
    expected = 0.0
    for length in range(len(answer)):
        ids = torch.tensor([[*prompt, *answer[:length]]])
        with torch.no_grad():
            with pair.using(POLICY) as model:
                p = torch.log_softmax(model(ids).logits[0, -1] / temperature, -1)
            with pair.using(None) as model:
                q = torch.log_softmax(model(ids).logits[0, -1] / temperature, -1)
        expected += float((p.exp() * (p - q)).sum())
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(expected, rel=1e-4)
    assert found[0, 0] > 0.01


def test_kl_keeps_its_place_whatever_the_lengths(pair: LoraPair) -> None:
    """Rows are batched by length; each value belongs to its own answer."""
    generations = [
        generation((3, 40, 4), (50, 51, 52, 53, 1), (60, 1)),
        generation((3, 41, 42, 43, 4), (70, 1), (80, 81, 1)),
    ]
    together = kl_to_reference(pair, POLICY, generations, 1.0)
    for i, given in enumerate(generations):
        for j, completion in enumerate(given.completions):
            single = generation(given.prompt_token_ids, completion.token_ids)
            alone = kl_to_reference(pair, POLICY, [single], 1.0)
            assert together[i, j] == pytest.approx(alone[0, 0], rel=1e-3)


def test_the_reference_itself_has_no_kl(pair: LoraPair) -> None:
    found = kl_to_reference(pair, ANCHOR, [generation((3, 40, 4), (50, 51, 1))], 1.0)
    assert found[0, 0] == pytest.approx(0.0, abs=1e-6)
