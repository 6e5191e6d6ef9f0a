"""Computing a prompt once for all its answers changes neither values nor gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bond_core.config import LoraConfig
from bond_trainer import shared_prompts
from bond_trainer.logprobs import TokenRow, backward_sequence_logprobs
from bond_trainer.lora import POLICY, LoraPair
from bond_trainer.shared_prompts import (
    RowTerm,
    _batches,
    _Group,
    _groups,
    backward_shared_prompts,
    buckets,
    padding_share,
)

ROWS = [
    TokenRow((3, 40, 41, 4), (50, 51, 1)),
    TokenRow((3, 60, 61, 62, 63, 4), (70, 1)),
    TokenRow((3, 40, 41, 4), (52, 53, 54, 55, 1)),
    TokenRow((9,), (80, 81, 1)),
    TokenRow((3, 40, 41, 4), (56, 1)),
    TokenRow((3, 60, 61, 62, 63, 4), (71, 72, 1)),
]
COEFFICIENTS = torch.tensor([1.0, -0.5, 0.25, 2.0, 0.0, 0.75])


@pytest.fixture
def pair(tiny_policy_path: Path) -> LoraPair:
    torch.manual_seed(0)
    made = LoraPair(
        AutoModelForCausalLM.from_pretrained(tiny_policy_path, dtype=torch.float32),
        LoraConfig(rank=4, alpha=8, freeze_a=False),
    )
    with torch.no_grad():
        for factor in made.factors(POLICY).values():
            factor.normal_(std=0.05)
    return made


def gradients(pair: LoraPair) -> list[torch.Tensor]:
    found = [factor.grad for factor in pair.factors(POLICY).values()]
    for factor in pair.factors(POLICY).values():
        factor.grad = None
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 8192])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_separate_rows(
    pair: LoraPair, max_batch_tokens: int, temperature: float
) -> None:
    expected = backward_sequence_logprobs(pair.model, ROWS, COEFFICIENTS, temperature=temperature)
    expected_gradients = gradients(pair)
    found = backward_shared_prompts(
        pair.model,
        ROWS,
        [RowTerm(c) for c in COEFFICIENTS],
        temperature=temperature,
        max_batch_tokens=max_batch_tokens,
    ).logprobs_R
    assert found[4].isnan()  # coefficient 0: not computed
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, equal_nan=True)
    for gradient, wanted in zip(gradients(pair), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_an_empty_answer_is_refused(pair: LoraPair) -> None:
    with pytest.raises(ValueError, match="row 0 has an empty prompt or completion"):
        backward_shared_prompts(pair.model, [TokenRow((3,), ())], [RowTerm(torch.ones(()))])


def test_little_of_what_is_computed_is_padding() -> None:
    """Lengths as a chat has them: prompts and answers log-normal, around 40 and 45 tokens."""
    rng = np.random.default_rng(0)
    rows = [
        TokenRow((3,) * prompt, (5,) * int(answer))
        for prompt in np.clip(rng.lognormal(3.7, 0.4, 64), 5, 300).astype(int)
        for answer in np.clip(rng.lognormal(3.8, 0.45, 5), 2, 300).astype(int)
    ]
    batches = list(_batches(_groups(rows, [True] * len(rows)), rows, 8192))
    assert padding_share(batches, rows) < 0.10
    assert sum(len(group.places) for batch in batches for group in batch) == len(rows)


def test_buckets_hold_every_row_once_and_are_full() -> None:
    lengths = [10, 3, 9, 30, 29, 1, 2, 10]
    found = list(buckets(lengths))
    assert sorted(i for bucket in found for i in bucket) == list(range(8))
    assert [sorted(lengths[i] for i in bucket) for bucket in found] == [
        [29, 30], [9, 10, 10], [3], [2], [1],
    ]  # fmt: skip
    share = padding_share(
        [[_Group((3, 4), tuple(range(2)))]], [TokenRow((3, 4), (5,) * n) for n in (9, 10)]
    )
    assert share == pytest.approx(1 - (1 + 19) / (1 + 20))


def test_what_follows_a_token_does_not_depend_on_the_rows_before_it() -> None:
    """A row of small values after one of large values, whose running sum float32 would round."""
    large, small = torch.full((500,), 1e5), torch.tensor([0.25, 0.001, 0.002])
    rows = torch.cat([torch.zeros(500), torch.ones(3)]).long()
    found = shared_prompts._following(torch.cat([large, small]), rows)
    torch.testing.assert_close(found[-3:], torch.tensor([0.003, 0.002, 0.0]), rtol=0, atol=1e-6)
    assert found[0] == 499e5
