"""What the server is, has and has learned."""

from dataclasses import dataclass

from bond_client.reading import Json, Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model id."""

    id: str
    root: str
    """The base model's id: the plain name, whose requests the configured split decides."""
    parent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy version and where it stands."""

    version: str
    state: str
    active: bool
    loaded: bool
    parent: str | None
    step: int
    created_at: float
    updated_at: float
    reason: str
    evaluation: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """All versions, oldest first."""

    active: str
    """What `distilled` means now."""
    versions: tuple[Policy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """The trainer's state as it last reported it."""

    run_id: str
    state: str
    step: int
    started_at: float
    heartbeat_at: float
    stale: bool
    """The trainer has not reported for so long that it is probably gone."""
    metrics: Json
    counts: Json
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation of one version on one held-out half."""

    version: str
    step: int
    split: str
    created_at: float
    metrics: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTraffic:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What training does, what it has shown, and what the arms give."""

    active: str
    run: TrainingRun | None
    """None until a trainer has reported."""
    evaluations: tuple[Evaluation, ...]
    """The latest ones, newest first."""
    arms: tuple[ArmTraffic, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the gateway can answer."""

    ready: bool
    active: str | None
    """The live policy version, if ready."""
    reason: str | None
    """Why it cannot answer, if not."""


def parse_models(body: object) -> tuple[Model, ...]:
    """A list of models. Raises `BondProtocolError`."""
    return tuple(
        Model(id=item.text("id"), root=item.text("root"), parent=item.maybe_text("parent"))
        for item in Reader(body).each("data")
    )


def parse_policies(body: object) -> Policies:
    """A list of policies. Raises `BondProtocolError`."""
    answer = Reader(body)
    return Policies(
        active=answer.text("active"),
        versions=tuple(_policy(item) for item in answer.each("data")),
    )


def parse_training(body: object) -> Training:
    """The state of training. Raises `BondProtocolError`."""
    answer = Reader(body)
    run = answer.maybe_nested("run")
    return Training(
        active=answer.text("active"),
        run=None if run is None else _run(run),
        evaluations=tuple(_evaluation(item) for item in answer.each("evaluations")),
        arms=tuple(_arm(item) for item in answer.each("arms")),
    )


def _policy(item: Reader) -> Policy:
    return Policy(
        version=item.text("version"),
        state=item.text("state"),
        active=item.flag("active"),
        loaded=item.flag("loaded"),
        parent=item.maybe_text("parent"),
        step=item.integer("step"),
        created_at=item.number("created_at"),
        updated_at=item.number("updated_at"),
        reason=item.text("reason"),
        evaluation=item.nested("evaluation").raw,
    )


def _run(run: Reader) -> TrainingRun:
    return TrainingRun(
        run_id=run.text("run_id"),
        state=run.text("state"),
        step=run.integer("step"),
        started_at=run.number("started_at"),
        heartbeat_at=run.number("heartbeat_at"),
        stale=run.flag("stale"),
        metrics=run.nested("metrics").raw,
        counts=run.nested("counts").raw,
        error=run.maybe_text("error"),
    )


def _evaluation(item: Reader) -> Evaluation:
    return Evaluation(
        version=item.text("version"),
        step=item.integer("step"),
        split=item.text("split"),
        created_at=item.number("created_at"),
        metrics=item.nested("metrics").raw,
    )


def _arm(item: Reader) -> ArmTraffic:
    return ArmTraffic(
        arm=item.text("arm"),
        requests=item.integer("requests"),
        failed=item.integer("failed"),
        score_mean=item.maybe_number("score_mean"),
        gold_mean=item.maybe_number("gold_mean"),
        log_ratio_mean=item.maybe_number("log_ratio_mean"),
        tokens_per_answer=item.maybe_number("tokens_per_answer"),
        latency_p50_ms=item.maybe_number("latency_p50_ms"),
        latency_p95_ms=item.maybe_number("latency_p95_ms"),
    )
