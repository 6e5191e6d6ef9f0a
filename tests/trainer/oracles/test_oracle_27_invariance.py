"""Oracle 27: only the ranks of the rewards matter, to the bit; they must be finite."""

import math

import pytest
import torch
from jbond_inputs import inputs

from bond_core.config import JBondConfig
from bond_core.errors import ScoringError
from bond_trainer.objectives import (
    forward_weights,
    jbond_loss,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("baseline", ["none", "batch", "group"])
def test_oracle_27_only_ranks_matter(baseline: str, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(7)
    own = torch.randint(-4, 5, (6, 2), generator=generator).double()
    anchors = torch.randint(-4, 5, (6, 4), generator=generator).double()
    config = JBondConfig(
        kl="sequence", beta=0.4, gamma=0.3, baseline=baseline, num_policy_samples=2
    )
    batch = inputs(own, anchors, dtype=dtype)
    plain = jbond_loss(batch, config).loss
    grads = torch.autograd.grad(plain, [batch.policy_logprobs_BPT, batch.forward_logprobs_BK])
    for transform in (lambda r: r + 17.0, lambda r: r * 0.125, lambda r: r**3):
        other = inputs(transform(own), transform(anchors), dtype=dtype)
        loss = jbond_loss(other, config).loss
        assert torch.equal(loss, plain)
        again = torch.autograd.grad(loss, [other.policy_logprobs_BPT, other.forward_logprobs_BK])
        assert all(torch.equal(a, b) for a, b in zip(again, grads, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_oracle_27_rewards_that_are_not_finite_are_refused(bad: float):
    config = JBondConfig(kl="sequence")
    own, anchors = torch.zeros(2, 1), torch.zeros(2, 3)
    own[1, 0] = bad
    with pytest.raises(ScoringError, match=r"policy sample at \[1, 0\] is -?(nan|inf)"):
        jbond_loss(inputs(own, anchors), config)
    anchors[0, 2] = bad
    with pytest.raises(ScoringError, match=r"anchor sample at \[0, 2\]"):
        jbond_loss(inputs(torch.zeros(2, 1), anchors), config)
    with pytest.raises(ScoringError, match="anchor sample"):
        forward_weights(anchors)
