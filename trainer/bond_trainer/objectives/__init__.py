"""Objectives: pure functions from tensors to a loss and metrics, one file each.

    jbond.py   Best-of-2 of a moving anchor, the default
    bond.py    Best-of-N of an anchor at a fixed N
    rloo.py    KL-regularised policy gradient
    gkd.py     on-policy distillation of a teacher
    winners.py maximum likelihood on logged winners, the first phase

`anchored`, `ranks`, `quantile_reward` and `token_divergences` are their parts.
"""

from bond_trainer.objectives.anchored import RolloutInputs
from bond_trainer.objectives.base import ObjectiveOutput
from bond_trainer.objectives.bond import bond_loss
from bond_trainer.objectives.gkd import GkdInputs, gkd_loss
from bond_trainer.objectives.jbond import jbond_loss
from bond_trainer.objectives.ranks import forward_weights
from bond_trainer.objectives.rloo import RlooInputs, rloo_loss
from bond_trainer.objectives.winners import winners_loss

__all__ = [
    "GkdInputs",
    "ObjectiveOutput",
    "RlooInputs",
    "RolloutInputs",
    "bond_loss",
    "forward_weights",
    "gkd_loss",
    "jbond_loss",
    "rloo_loss",
    "winners_loss",
]
