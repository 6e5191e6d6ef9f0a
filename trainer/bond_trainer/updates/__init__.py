"""Updates: from rollouts to gradients in the policy's factors, one file per kind of objective.

    anchored.py  J-BOND and BOND at fixed N: policy against anchor
    rloo.py      policy gradient against the reference
    gkd.py       token divergences to a teacher
    importance.py  policy samples that a server drew

Each computes, before any gradient, what weighs on which log-probability and divergence; then
`shared_prompts` differentiates that micro-batch by micro-batch.
"""

from collections.abc import Mapping, Sequence

from bond_core.config import GkdConfig, ObjectiveConfig, RlooConfig
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.updates.anchored import backward_anchored
from bond_trainer.updates.base import UpdateContext
from bond_trainer.updates.gkd import backward_gkd
from bond_trainer.updates.rloo import backward_rloo

__all__ = ["UpdateContext", "backward"]


def backward(
    context: UpdateContext, groups: Sequence[RolloutGroup], objective: ObjectiveConfig
) -> Mapping[str, float]:
    """Accumulate the objective's gradient in the policy's factors, and say what it was.

    Raises `ScoringError` for rewards that are not finite.
    """
    if isinstance(objective, GkdConfig):
        return backward_gkd(context, groups, objective)
    if isinstance(objective, RlooConfig):
        return backward_rloo(context, groups, objective)
    return backward_anchored(context, groups, objective)
