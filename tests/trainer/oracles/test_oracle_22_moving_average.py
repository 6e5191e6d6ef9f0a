"""Oracles 22 and 23: the anchor's moving average, its direction and its precision."""

import math

import numpy as np
import pytest
import torch
from mutants import mutant

from bond_core.best_of_n_law import best_of_n_kl, best_of_n_probabilities, reward_quantiles
from bond_trainer import moving_average
from bond_trainer.moving_average import update_moving_average

ETA = 0.02


def test_oracle_22_anchor_climbs_as_best_of_1_plus_eta_to_the_t():
    """Logits (N - 1) log u of the continuous Best-of-N law: averaged with those of its
    Best-of-2, (2N - 1) log u, they are the law of N (1 + eta)."""
    log_u = torch.linspace(-9, -1e-3, 50, dtype=torch.float64)
    anchor = {"logits": torch.zeros_like(log_u)}
    for step in range(1, 101):
        n = float(anchor["logits"][0] / log_u[0]) + 1
        update_moving_average(anchor, {"logits": (2 * n - 1) * log_u}, ETA)
        expected = ((1 + ETA) ** step - 1) * log_u
        torch.testing.assert_close(anchor["logits"], expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("steps", "quantile", "kl"), [(35, 0.66665, 0.19312), (100, 0.87871, 1.1183)]
)
def test_oracle_22_anchor_on_a_fine_grid(steps: int, quantile: float, kl: float):
    """The same with the discrete law's own Best-of-2, up to what the grid resolves."""
    num_atoms = 20_000
    uniform, rewards = np.full(num_atoms, 1 / num_atoms), np.arange(num_atoms)
    anchor = {"logits": torch.from_numpy(np.log(uniform))}
    for _ in range(steps):
        law = anchor["logits"].softmax(dim=0).numpy()
        policy = np.log(best_of_n_probabilities(law, rewards, 2))
        update_moving_average(anchor, {"logits": torch.from_numpy(policy)}, ETA)
    law = anchor["logits"].softmax(dim=0).numpy()
    n = (1 + ETA) ** steps
    mean_u = float(law @ reward_quantiles(uniform, rewards).middle)
    assert mean_u == pytest.approx(n / (n + 1), abs=1e-6)
    assert mean_u == pytest.approx(quantile, abs=1e-5)
    kl_nats = float((law * np.log(law * num_atoms)).sum())
    assert kl_nats == pytest.approx(steps * math.log(1 + ETA) - 1 + 1 / n, abs=1e-4)
    assert kl_nats == pytest.approx(kl, abs=1e-4)
    assert kl_nats < best_of_n_kl(uniform, rewards, math.ceil(n))


def test_oracle_22_notices_the_opposite_direction():
    with mutant(
        moving_average, "current.to(average.device, average.dtype), eta", "current, 1 - eta"
    ) as wrong:
        anchor = {"w": torch.zeros(1)}
        wrong.update_moving_average(anchor, {"w": torch.ones(1)}, ETA)
    assert float(anchor["w"]) == pytest.approx(0.98)  # 0.02 is right
    update_moving_average(sound := {"w": torch.zeros(1)}, {"w": torch.ones(1)}, ETA)
    assert float(sound["w"]) == pytest.approx(0.02)


def test_oracle_23_elementwise():
    generator = torch.Generator().manual_seed(0)
    anchor_before = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    policy = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    anchor = {"b": anchor_before.clone()}
    update_moving_average(anchor, {"b": policy}, ETA)
    torch.testing.assert_close(
        anchor["b"], 0.98 * anchor_before + 0.02 * policy, rtol=0, atol=1e-15
    )


def test_oracle_23_eta_1_is_a_hard_update_and_eta_0_none():
    policy = {"w": torch.tensor([0.1, 1 / 3, 1e-8])}
    hard, frozen = {"w": torch.tensor([5.0, -2.0, 1e8])}, {"w": torch.tensor([5.0, -2.0, 1e8])}
    update_moving_average(hard, policy, 1.0)
    update_moving_average(frozen, policy, 0.0)
    assert torch.equal(hard["w"], policy["w"])
    assert torch.equal(frozen["w"], torch.tensor([5.0, -2.0, 1e8]))


def test_oracle_23_small_updates_are_not_rounded_away():
    anchor, policy = {"w": torch.ones(1)}, {"w": torch.ones(1) + 1e-5}
    update_moving_average(anchor, policy, ETA)
    assert float(anchor["w"]) - 1 == pytest.approx(2e-7, abs=6e-8)  # float32's spacing at 1
    half = torch.ones(1, dtype=torch.bfloat16)
    assert torch.equal(half.lerp(half + 1e-5, ETA), half)  # why a narrower anchor is refused
    with pytest.raises(ValueError, match="keep it in float32"):
        update_moving_average({"w": half}, policy, ETA)


def test_update_is_in_place_and_builds_no_graph():
    average = torch.zeros(2)
    update_moving_average({"w": average}, {"w": torch.ones(2, requires_grad=True)}, 0.5)
    assert average.tolist() == [0.5, 0.5]
    assert not average.requires_grad


def test_what_does_not_match_is_refused():
    with pytest.raises(ValueError, match="different parameters: b"):
        update_moving_average({"a": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)}, 0.1)
    with pytest.raises(ValueError, match=r"\(1,\) in the anchor and \(2,\) in the policy"):
        update_moving_average({"a": torch.zeros(1)}, {"a": torch.ones(2)}, 0.1)
    with pytest.raises(ValueError, match="eta is between"):
        update_moving_average({"a": torch.zeros(1)}, {"a": torch.ones(1)}, 1.1)
