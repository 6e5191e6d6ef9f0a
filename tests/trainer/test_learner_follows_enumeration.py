"""J-BOND by the real learner, sampled, follows J-BOND by enumeration, step by step.

A Llama of five tokens, LoRA on all of its linear modules, answers of four tokens: 625 answers. One
learner draws answers and learns from them as in production; the other run takes the exact gradient
of (1-beta) KL(Best-of-2 of the anchor || pi) + beta KL(pi || q_B) + gamma KL(pi || anchor), summed
over all answers, through the same network from the same start, and moves the same moving average.
Both take plain gradient steps: Adam divides by the gradient's noise, and the exact run has none.
The mean of the sampled runs agrees with the exact one within its standard error, of quantile and of
KL, for policy and anchor, all along the way.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from enumerable_model import ANSWERS, PROMPT, L, V, fresh_pair, token_logprobs
from sequence_toy import exact_objective
from torch import Tensor

from bond_core.best_of_n_law import reward_quantiles
from bond_core.config import SamplingConfig, TrainerConfig
from bond_trainer.learner import Learner
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair
from bond_trainer.moving_average import update_moving_average
from bond_trainer.rollouts import Rollout, RolloutGroup

STEPS, LOOK_EVERY, GROUPS, RUNS = 45, 15, 64, 4
RATE, ETA, K = 0.03, 0.1, 4


class PlainStepLearner(Learner):
    """The learner with gradient steps that are linear in the gradient."""

    def _new_optimizer(self, rate: float) -> Any:
        return torch.optim.SGD(list(self.pair.factors(POLICY).values()), lr=rate)


def measured(pair: LoraPair, start: Tensor, quantiles: Tensor) -> list[float]:
    """Mean quantile and KL to the start, of policy and of anchor."""
    found: list[float] = []
    for name in (POLICY, ANCHOR):
        with torch.no_grad():
            law = token_logprobs(pair, name).sum(-1)
        found += [float(law.exp() @ quantiles), float(law.exp() @ (law - start))]
    return found


def world() -> tuple[Tensor, Tensor, Tensor]:
    """Rewards without ties, the reference's log-law and the quantiles under it."""
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(L, V, generator=generator).double()[torch.arange(L), ANSWERS].sum(-1)
    with torch.no_grad():
        start = token_logprobs(fresh_pair(), POLICY).sum(-1)
    middle = reward_quantiles(start.exp().numpy(), rewards.numpy()).middle
    return rewards, start, torch.from_numpy(middle)


def enumerated(beta: float, gamma: float, eta: float = ETA) -> np.ndarray:
    """What is measured along the run without noise."""
    rewards, start, quantiles = world()
    pair = fresh_pair()
    factors = pair.factors(POLICY)
    optimizer = torch.optim.SGD(list(factors.values()), lr=RATE)
    rows: list[list[float]] = []
    for step in range(STEPS):
        with torch.no_grad():
            anchor = token_logprobs(pair, ANCHOR).sum(-1)
        optimizer.zero_grad()
        policy = token_logprobs(pair, POLICY).sum(-1)
        exact_objective(policy, anchor, rewards, beta, gamma).backward()
        optimizer.step()
        update_moving_average(pair.factors(ANCHOR), factors, eta)
        if (step + 1) % LOOK_EVERY == 0:
            rows.append(measured(pair, start, quantiles))
    return np.array(rows)


def drawn(
    pair: LoraPair, name: AdapterName, per_group: int, rewards: Tensor, generator: torch.Generator
) -> list[tuple[Rollout, ...]]:
    with torch.no_grad():
        logprobs = token_logprobs(pair, name)
    picks = torch.multinomial(
        logprobs.sum(-1).exp(), GROUPS * per_group, replacement=True, generator=generator
    )
    flat = [
        Rollout(tuple(ANSWERS[i].tolist()), tuple(logprobs[i].tolist()), float(rewards[i]), "")
        for i in picks
    ]
    return [tuple(flat[i : i + per_group]) for i in range(0, len(flat), per_group)]


def sampled(seed: int, objective: Mapping[str, Any]) -> np.ndarray:
    """What is measured along a run that draws its answers."""
    rewards, start, quantiles = world()
    config = TrainerConfig.model_validate(
        {
            "objective": {"eta": ETA, "num_anchor_samples": K, **objective},
            "learning_rate": RATE,
            "warmup_steps": 0,
            "max_grad_norm": 1e9,
        }
    )
    learner = PlainStepLearner(fresh_pair(), config, SamplingConfig())
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[float]] = []
    for step in range(STEPS):
        policy = drawn(learner.pair, POLICY, 1, rewards, generator)
        anchor = drawn(learner.pair, ANCHOR, K, rewards, generator)
        groups = [RolloutGroup(PROMPT, p, a) for p, a in zip(policy, anchor, strict=True)]
        learner.learn_from_rollouts(groups)
        if (step + 1) % LOOK_EVERY == 0:
            rows.append(measured(learner.pair, start, quantiles))
    return np.array(rows)


@pytest.mark.parametrize(("kl", "beta", "gamma"), [("sequence", 0.5, 0.0), ("exact", 0.5, 1.0)])
def test_sampled_runs_follow_the_enumerated_one(kl: str, beta: float, gamma: float) -> None:
    settings = {"kl": kl, "beta": beta, "gamma": gamma}
    runs = np.array([sampled(seed, settings) for seed in range(RUNS)])
    standard_error = runs.std(axis=0, ddof=1) / math.sqrt(RUNS)
    assert (standard_error < [0.004, 0.03, 0.004, 0.03]).all()

    def off(exact: np.ndarray) -> np.ndarray:
        return np.abs(runs.mean(axis=0) - exact) / standard_error

    assert (off(enumerated(beta, gamma)) < 3).all(), off(enumerated(beta, gamma))
    # the comparison tells other recursions apart: other weights, and an anchor that stays
    for other in (enumerated(beta, gamma + 1), enumerated(1 - beta / 2, gamma)):
        assert off(other).max() > 4
    assert off(enumerated(beta, gamma, eta=0.0)).max() > 4
