"""Model ids, policies and the state of training on the wire."""

from typing import Any, Literal

from pydantic import BaseModel


class ModelView(BaseModel):
    """One model id, in OpenAI's form with vLLM's `root` and `parent`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    """The base model's id."""
    parent: str | None = None
    """For a policy version, the id of the version that it grew from."""


class ModelList(BaseModel):
    """All model ids."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class PolicyView(BaseModel):
    """One policy version and where it stands."""

    version: str
    object: Literal["bond.policy"] = "bond.policy"
    state: str
    active: bool
    """What `distilled` means now, on this gateway."""
    loaded: bool
    """Whether this gateway's engine holds it."""
    parent: str | None
    step: int
    created_at: float
    updated_at: float
    reason: str
    evaluation: dict[str, Any]


class PolicyList(BaseModel):
    """All versions, oldest first."""

    object: Literal["list"] = "list"
    active: str
    data: list[PolicyView]


class EvaluationView(BaseModel):
    """One evaluation on a held-out half."""

    version: str
    step: int
    split: str
    created_at: float
    metrics: dict[str, Any]


class RunView(BaseModel):
    """The trainer's state as it last reported it."""

    run_id: str
    state: str
    step: int
    started_at: float
    heartbeat_at: float
    stale: bool
    """The trainer has not reported for so long that it is probably gone."""
    metrics: dict[str, Any]
    counts: dict[str, int]
    error: str | None


class ArmView(BaseModel):
    """Traffic of one arm."""

    arm: str
    requests: int
    failed: int
    score_mean: float | None
    gold_mean: float | None
    log_ratio_mean: float | None
    tokens_per_answer: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None


class TrainingView(BaseModel):
    """What training does, what it has shown, and what the arms give."""

    object: Literal["bond.training"] = "bond.training"
    run: RunView | None
    """Null until a trainer has reported."""
    active: str
    evaluations: list[EvaluationView]
    """The latest ones, newest first."""
    arms: list[ArmView]


class Health(BaseModel):
    """The process is up."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The gateway can answer."""

    status: Literal["ready"] = "ready"
    engine: Literal["ok"] = "ok"
    scorer: Literal["started"] = "started"
    """A scorer has no health of its own: a failure to score is seen in the answers."""
    store: Literal["ok"] = "ok"
    active: str
