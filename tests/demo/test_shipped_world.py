"""The properties of the shipped models: on fresh answers, and as the model card states them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bond_core.config import ClassifierScorerConfig, SelfTestConfig
from bond_core.rewards import build_scorer
from bond_core.statistics import best_of_n_reward
from bond_core.types import Message
from bond_demo.making.measurements import (
    ScoredSamples,
    distinct_share,
    tied_share,
    within_prompt_correlation,
)
from bond_demo.making.model_card import model_card
from bond_demo.making.sampler import MAX_NEW_TOKENS
from bond_demo.worlds import judge_path, policy_path, proxy_path, world_path

FIGURES: dict[str, Any] = json.loads((world_path() / "curve.json").read_text(encoding="utf-8"))


def test_weights_are_small_and_of_standard_architectures(
    policy: LlamaForCausalLM,
    proxy: LlamaForSequenceClassification,
    judge: LlamaForSequenceClassification,
) -> None:
    weights = list(world_path().rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 16_000_000
    assert 1_000_000 <= policy.num_parameters() <= 3_000_000
    assert policy.config.head_dim >= 32  # what vLLM's attention takes
    for model in (proxy, judge):
        assert model.config.num_labels == 1
        assert model.config.pad_token_id == policy.config.pad_token_id
    names = [json.loads((path / "config.json").read_text())["architectures"]
             for path in (policy_path(), proxy_path(), judge_path())]  # fmt: skip
    assert names == [["LlamaForCausalLM"], *[["LlamaForSequenceClassification"]] * 2]


def test_all_three_have_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        files = {(path() / name).read_bytes() for path in (policy_path, proxy_path, judge_path)}
        assert len(files) == 1


def test_the_generation_settings_hold_no_surprise(
    policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = policy.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 1.0, 1.0)
    assert settings.top_k == 0
    assert settings.eos_token_id == tokenizer.eos_token_id


def test_sixteen_candidates_are_distinct_short_and_untied(fresh: ScoredSamples) -> None:
    assert distinct_share(fresh.texts) >= 0.99
    assert tied_share(fresh.proxy) < 0.01
    assert fresh.tokens.max() <= MAX_NEW_TOKENS
    assert 25 <= fresh.tokens.mean() <= 45


def test_proxy_ranks_as_gold_does_but_not_quite(fresh: ScoredSamples) -> None:
    assert 0.6 <= within_prompt_correlation(fresh.proxy, fresh.gold) <= 0.85
    assert within_prompt_correlation(fresh.judge, fresh.gold) >= 0.6


def test_the_flaw_can_be_exploited_and_the_judge_does_not_share_it(fresh: ScoredSamples) -> None:
    flawed = fresh.flaws > 0
    assert flawed.sum() > 50

    def advantage(rewards: np.ndarray) -> float:
        return float((rewards[flawed].mean() - rewards[~flawed].mean()) / rewards.std())

    assert advantage(fresh.proxy) > 1
    assert advantage(fresh.gold) < -0.5
    assert advantage(fresh.judge) < -0.5


def test_selection_gains_what_it_should(fresh: ScoredSamples) -> None:
    gain = best_of_n_reward(fresh.proxy, 8) - fresh.proxy.mean(axis=1)
    assert float((gain / fresh.proxy.std(axis=1)).mean()) >= 1


def test_gold_rises_with_selection_and_then_falls(fresh: ScoredSamples) -> None:
    gold = {n: best_of_n_reward(fresh.proxy, n, fresh.gold) for n in (1, 8, 64)}
    for higher, lower in ((8, 1), (8, 64)):
        difference = gold[higher] - gold[lower]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        assert difference.mean() > 3 * error, f"Best-of-{higher} against Best-of-{lower}"


def test_the_stated_curve_peaks_before_sixty_four() -> None:
    gold = {int(n): row["gold"] for n, row in FIGURES["best_of"].items()}
    assert set(gold) == {1, 2, 4, 8, 16, 32, 64}
    peak = max(gold, key=lambda n: gold[n]["mean"])
    assert 2 <= peak < 64
    assert gold[peak]["mean"] - gold[64]["mean"] > 5 * gold[64]["standard_error"]
    assert gold[8]["mean"] - gold[1]["mean"] > 5 * gold[8]["standard_error"]
    proxy = [FIGURES["best_of"][str(n)]["proxy"]["mean"] for n in sorted(gold)]
    assert proxy == sorted(proxy)


def test_the_card_states_the_measured_figures(
    policy: LlamaForCausalLM, proxy: LlamaForSequenceClassification
) -> None:
    card = model_card(FIGURES, policy.num_parameters(), proxy.num_parameters())
    assert (world_path() / "MODEL_CARD.md").read_text(encoding="utf-8") == card
    for n in ("2", "4", "8", "16", "64"):
        assert f"Best-of-{n} | {FIGURES['best_of'][n]['proxy']['mean']:.3f}" in card


@pytest.mark.parametrize("reward", ["proxy", "judge", "gold"])
def test_fresh_answers_agree_with_the_stated_means(fresh: ScoredSamples, reward: str) -> None:
    # The same prompts' share of the stated mean is unknown, so errors over prompts are allowed for.
    means = getattr(fresh, reward).mean(axis=1)
    stated = FIGURES["best_of"]["1"][reward]["mean"]
    assert abs(means.mean() - stated) < 4 * means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("path", [proxy_path, judge_path])
async def test_both_reward_models_pass_the_self_test_of_scorers_on_servers(
    path: Callable[[], Path],
) -> None:
    scorer = build_scorer(ClassifierScorerConfig(path=path()))
    await scorer.start()
    test = SelfTestConfig()
    good, bad = await scorer.score([[Message("user", test.prompt)]] * 2, [test.good, test.bad])
    await scorer.close()
    assert good > bad + 1
