"""Oracle 14: per-token KL on sampled prefixes against the log-ratio estimators k1, k2 and k3."""

import pytest
import torch
from enumerable_model import ANSWERS, PROMPT, fresh_pair, token_logprobs
from sequence_toy import answer_logprobs, kl, parameters

from bond_core.types import Completion, Generation
from bond_trainer.laws_along import laws_along
from bond_trainer.lora import ANCHOR, POLICY


def laws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = parameters(1)
    return logits, answer_logprobs(logits), answer_logprobs(parameters(2)).detach()


def test_oracle_14_means_and_variance():
    logits, policy, anchor = laws()
    policy, pi = policy.detach(), policy.detach().exp()
    exact = float(kl(policy, anchor))
    log_r = anchor - policy
    k1, k2, k3 = -log_r, log_r**2 / 2, log_r.exp() - 1 - log_r
    assert float(pi @ k1) == pytest.approx(exact, abs=1e-10)
    assert float(pi @ k3) == pytest.approx(exact, abs=1e-10)
    assert abs(float(pi @ k2) - exact) > 1e-2
    ours = logits.detach().log_softmax(-1)
    theirs = parameters(2).detach().log_softmax(-1)
    step_kl = (ours.exp() * (ours - theirs)).sum(-1)
    by_prefix = (step_kl[0] + step_kl[1:]).repeat_interleave(3)  # answers are in order
    assert float(pi @ by_prefix) == pytest.approx(exact, abs=1e-10)
    assert float(pi @ (by_prefix - exact) ** 2) <= float(pi @ (k1 - exact) ** 2)


def test_oracle_14_gradients_as_a_loss():
    """On samples held fixed: k1 gives nothing, k2 KL(pi || anchor), k3 KL(anchor || pi)."""
    logits, policy, anchor = laws()
    weights = policy.detach().exp()
    log_r = anchor - policy

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    same = {"rtol": 0, "atol": 1e-10}
    found = gradient(weights @ -log_r)
    torch.testing.assert_close(found, torch.zeros_like(found), **same)
    torch.testing.assert_close(
        gradient(weights @ (log_r**2 / 2)), gradient(kl(policy, anchor)), **same
    )
    torch.testing.assert_close(
        gradient(weights @ (log_r.exp() - 1 - log_r)), gradient(kl(anchor, policy)), **same
    )


def test_oracle_14_what_is_reported_has_the_exact_means():
    """Over all 625 answers of a real model, weighted by their probabilities: the per-token sums
    that evaluations report have KL(pi || reference) and the entropy of pi as their means."""
    pair = fresh_pair()
    with torch.no_grad():
        for factor in pair.factors(POLICY).values():
            factor.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
        policy, reference = (token_logprobs(pair, name).sum(-1) for name in (POLICY, ANCHOR))
    every = tuple(
        Completion("", tuple(answer), (0.0,) * len(answer), "length") for answer in ANSWERS.tolist()
    )
    found = laws_along(
        lambda: pair.using(POLICY), lambda: pair.using(None), [Generation(PROMPT, every)], 1.0
    )
    weights = policy.exp().numpy()
    assert float(kl(policy, reference)) > 0.1
    assert weights @ found.kl_PS[0] == pytest.approx(float(kl(policy, reference)), rel=1e-5)
    assert weights @ found.entropy_PS[0] == pytest.approx(
        -float(weights @ policy.numpy()), rel=1e-5
    )
