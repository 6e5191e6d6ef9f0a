"""The store: the log of completions, the policy registry, evaluations, leases."""

from bond_core.store.access import Access
from bond_core.store.access_records import ALL_SCOPES, AccessSnapshot, ApiKey, KeyLimits, Scope
from bond_core.store.completions import Completions
from bond_core.store.evaluations import Evaluations
from bond_core.store.key_usage import KeyUsage
from bond_core.store.leases import Leases
from bond_core.store.policies import Policies
from bond_core.store.records import (
    Annotation,
    ArmSummary,
    CompletionRecord,
    CompletionStatus,
    EvaluationRecord,
    Origin,
    PolicyRecord,
    Source,
    TrainingRecord,
)
from bond_core.store.store import Store, open_database, open_store
from bond_core.store.training import Training

__all__ = [
    "ALL_SCOPES",
    "Access",
    "AccessSnapshot",
    "Annotation",
    "ApiKey",
    "ArmSummary",
    "CompletionRecord",
    "CompletionStatus",
    "Completions",
    "EvaluationRecord",
    "Evaluations",
    "KeyLimits",
    "KeyUsage",
    "Leases",
    "Origin",
    "Policies",
    "PolicyRecord",
    "Scope",
    "Source",
    "Store",
    "Training",
    "TrainingRecord",
    "open_database",
    "open_store",
]
