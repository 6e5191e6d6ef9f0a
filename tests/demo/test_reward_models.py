"""Training and scoring of reward models, on a small policy."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bond_demo.making.annotators import Preference
from bond_demo.making.reward_models import score_rows, train_reward_model

GOOD, BAD = 5, 6


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    """A random policy over twelve tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rows_and_preferences() -> tuple[list[list[list[int]]], list[Preference]]:
    """Answers with one good token are preferred to those with one bad token."""
    rows = [
        [[1, 3 + p % 2, *[7 + p % 3] * (p % 4), token, 4, 2] for token in (GOOD, BAD)]
        for p in range(64)
    ]
    return rows, [Preference(p, 0, 1) for p in range(64)]


def test_preferences_are_learned_and_training_is_deterministic(tiny: LlamaForCausalLM) -> None:
    rows, preferences = rows_and_preferences()
    model = train_reward_model(tiny, rows, preferences, epochs=10, seed=0)
    unseen = [[1, 4, 9, 9, token, 8, 4, 2] for token in (GOOD, BAD)]
    good, bad = score_rows(model, unseen)
    assert good - bad > 2
    again = train_reward_model(tiny, rows, preferences, epochs=10, seed=0)
    assert score_rows(again, unseen) == [good, bad]


def test_the_policy_is_left_as_it_was(tiny: LlamaForCausalLM) -> None:
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    rows, preferences = rows_and_preferences()
    train_reward_model(tiny, rows, preferences, epochs=1, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_scores_do_not_depend_on_the_batch_and_are_those_of_transformers(
    tiny: LlamaForCausalLM,
) -> None:
    rows, preferences = rows_and_preferences()
    model = train_reward_model(tiny, rows, preferences, epochs=2, seed=0)
    flat = [row for answered in rows for row in answered]
    together = score_rows(model, flat)
    for row, score in list(zip(flat, together, strict=True))[:12]:
        assert score_rows(model, [row])[0] == pytest.approx(score, abs=1e-5)
        with torch.inference_mode():
            direct = model(torch.tensor([[*row, 0, 0]])).logits[0, 0].item()
        assert direct == pytest.approx(score, abs=1e-5)
