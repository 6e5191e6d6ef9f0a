"""How a server's log-probabilities are told: of the law that was drawn from, or of the model's."""

import math

import pytest

from bond_core.engines.vllm.inspection import is_of_equals


@pytest.mark.parametrize("logprob", [0.0, -1e-7, -0.6931471824645996, -math.log(3)])
def test_top_k_one_is_a_point_or_a_tie(logprob: float) -> None:
    """A tie of two in bfloat16, as vLLM reports it in float32."""
    assert is_of_equals(logprob)


@pytest.mark.parametrize("logprob", [-1e-3, -0.5, -0.7, -2.0])
def test_the_models_own_are_no_tie(logprob: float) -> None:
    assert not is_of_equals(logprob)
