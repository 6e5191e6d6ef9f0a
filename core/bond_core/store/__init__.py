"""The store: the log of completions, the policy registry, evaluations, leases."""

from bond_core.store.completions import Completions
from bond_core.store.evaluations import Evaluations
from bond_core.store.leases import Leases
from bond_core.store.policies import Policies
from bond_core.store.records import (
    ArmSummary,
    CompletionRecord,
    CompletionStatus,
    EvaluationRecord,
    Origin,
    PolicyRecord,
    Source,
    TrainingRecord,
)
from bond_core.store.store import Store, open_store
from bond_core.store.training import Training

__all__ = [
    "ArmSummary",
    "CompletionRecord",
    "CompletionStatus",
    "Completions",
    "EvaluationRecord",
    "Evaluations",
    "Leases",
    "Origin",
    "Policies",
    "PolicyRecord",
    "Source",
    "Store",
    "Training",
    "TrainingRecord",
    "open_store",
]
