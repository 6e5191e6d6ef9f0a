"""Offline evaluation: fresh samples of policies on prompts that nothing was decided on.

`drawn` samples, `measures` computes what is reported (pure), `picture` draws it.
"""

from bond_trainer.evaluation.drawn import DrawnPolicies, DrawnPolicy, draw_policies
from bond_trainer.evaluation.measures import evaluate

__all__ = ["DrawnPolicies", "DrawnPolicy", "draw_policies", "evaluate"]
