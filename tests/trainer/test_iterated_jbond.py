"""Iterated J-BOND, sampled and trained, follows the recursion solved exactly by enumeration.

Five tokens, answers of four, 625 answers. The policy is a small perceptron of the prefix with all
weights trained, by the objective as implemented on sampled answers; the anchor moves by hard
updates. Over 4 seeds, mean quantile and KL after each round agree with the exact recursion within
three standard errors plus what the network is off (.005 in quantile, .02 nats): the recursion
minimises over all laws, the network over its own. `test_learner_follows_enumeration` compares
within one network, and needs no such allowance.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from sequence_toy import toy_jbond_inputs
from torch import Tensor, nn

from bond_core.best_of_n_law import reward_quantiles
from bond_core.config import JBondConfig
from bond_core.jbond_recursion import next_anchor
from bond_trainer.moving_average import update_moving_average
from bond_trainer.objectives.jbond import jbond_loss

V, L = 5, 4
ANSWERS = torch.tensor(list(itertools.product(range(V), repeat=L)))
ROUNDS, STEPS, BATCH = 3, 300, 2048


class PrefixPolicy(nn.Module):
    """Next-token laws from the one-hot prefix; log-probabilities of all 625 answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(L * (V + 1), 64), nn.Tanh(), nn.Linear(64, V))
        prefixes = [p for n in range(L) for p in itertools.product(range(V), repeat=n)]
        index = {p: i for i, p in enumerate(prefixes)}
        padded = torch.tensor([[*p, *[V] * (L - len(p))] for p in prefixes])
        self.prefixes = nn.functional.one_hot(padded, V + 1).flatten(1).float()
        rows = [[index[tuple(a[:t])] for t in range(L)] for a in ANSWERS.tolist()]
        self.rows = torch.tensor(rows)

    def forward(self) -> Tensor:
        laws = self.layers(self.prefixes).log_softmax(-1)
        return laws[self.rows, ANSWERS].sum(-1)


def run(seed: int, config: JBondConfig) -> list[tuple[float, float, float, float]]:
    """After each round, sampled and exact mean quantile, sampled and exact KL."""
    torch.manual_seed(seed)
    policy, anchor = PrefixPolicy(), PrefixPolicy()
    anchor.load_state_dict(policy.state_dict())
    rewards = torch.randn(L, V).double()[torch.arange(L), ANSWERS].sum(-1)
    with torch.no_grad():
        start = policy().double().softmax(0).numpy()
    u = reward_quantiles(start, rewards.numpy()).middle
    exact, results = start, []
    for _ in range(ROUNDS):
        optimizer = torch.optim.Adam(policy.parameters())
        with torch.no_grad():
            fixed = anchor()
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
            logprobs = policy()
            y_BP = torch.multinomial(logprobs.detach().exp(), BATCH, True)[:, None]
            k = 4
            anchors_BK = torch.multinomial(fixed.exp(), BATCH * k, True).view(BATCH, k)
            inputs = toy_jbond_inputs(logprobs, fixed, rewards, y_BP, anchors_BK)
            optimizer.zero_grad()
            jbond_loss(inputs, config).loss.backward()
            optimizer.step()
        update_moving_average(dict(anchor.named_parameters()), dict(policy.named_parameters()), 1.0)
        exact = next_anchor(exact, rewards.numpy(), beta=config.beta, gamma=config.gamma)
        with torch.no_grad():
            law = policy().double().softmax(0).numpy()
        kls = [float(p @ np.log(p / start)) for p in (law, exact)]
        results.append((float(law @ u), float(exact @ u), kls[0], kls[1]))
    return results


@pytest.mark.parametrize(("beta", "gamma"), [(0.5, 0.0)])
def test_iterated_jbond_follows_the_exact_recursion(beta: float, gamma: float):
    torch.set_num_threads(1)
    found = np.array([run(s, JBondConfig(kl="sequence", beta=beta, gamma=gamma)) for s in range(4)])
    for column, slack in ((0, 0.005), (2, 0.02)):
        error = found[:, :, column] - found[:, :, column + 1]
        standard_error = error.std(axis=0, ddof=1) / math.sqrt(len(error))
        assert (standard_error < slack).all(), standard_error
        assert (abs(error.mean(axis=0)) < 3 * standard_error + slack).all(), error
