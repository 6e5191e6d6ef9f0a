"""Computing a prompt once for all its answers changes neither values nor gradients."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bond_core.config import LoraConfig
from bond_trainer.logprobs import TokenRow, backward_sequence_logprobs
from bond_trainer.lora import POLICY, LoraPair
from bond_trainer.shared_prompts import RowTerm, backward_shared_prompts

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
