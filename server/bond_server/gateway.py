"""Opening and closing what the gateway runs on: store, engine, scorers, services."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bond_core.config import BondConfig, FakeEngineConfig, ScorerConfig
from bond_core.engines import Engine, build_engine
from bond_core.rewards import Scorer, build_scorer
from bond_core.store import Store, open_store
from bond_server.access.binding import refuse_open
from bond_server.access.gatekeeper import Gatekeeper, open_gatekeeper
from bond_server.metrics import Metrics
from bond_server.services.admission import Admission
from bond_server.services.after_answer import AfterAnswer, Judges
from bond_server.services.arms import servable_arms
from bond_server.services.background import Background
from bond_server.services.comparison import ComparisonService
from bond_server.services.controller import Controller
from bond_server.services.generation import GenerationService
from bond_server.services.idempotency import Idempotency
from bond_server.services.models import Models
from bond_server.services.policies import PolicyRegistry
from bond_server.services.pricing import pricing_of
from bond_server.services.recording import Recording
from bond_server.services.redaction import Redactor, load_redactor
from bond_server.services.retention import Retention
from bond_server.services.stored import StoredService
from bond_server.store_metrics import StoreMetrics

if TYPE_CHECKING:
    from bond_server.tracing.spans import Tracing

DEFAULT_RESIDENT_VERSIONS = 4
DRAIN_S = 5.0
"""How long rows on their way and queued measurements may take at shutdown."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that a route may need, opened and ready."""

    config: BondConfig
    metrics: Metrics
    store: Store
    engine: Engine
    judges: Judges
    policies: PolicyRegistry
    models: Models
    generation: GenerationService
    admission: Admission
    comparison: ComparisonService
    after_answer: AfterAnswer
    controller: Controller
    idempotency: Idempotency
    stored: StoredService
    retention: Retention
    background: Background
    gatekeeper: Gatekeeper
    started_at: float
    """Unix seconds."""


@asynccontextmanager
async def open_gateway(
    config: BondConfig, metrics: Metrics, tracing: "Tracing | None" = None
) -> AsyncGenerator[Gateway]:
    """Open everything in order, restore the active policy, run the loops; close in reverse.

    Raises the `BondError` of the part that cannot be opened.
    """
    async with AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        store = await open_store(
            config.store_url,
            config.store.durability,
            config.store.group_commit_rows,
            config.store.commit_timeout_s,
            config.store.queue_rows,
            exclusive_gateway=True,
        )
        stack.push_async_callback(store.close)
        gatekeeper = await open_gatekeeper(store, config.access.refresh_s)
        stack.push_async_callback(gatekeeper.close)
        refuse_open(config, has_keys=gatekeeper.keyring.has_keys)
        engine = build_engine(config.engine, config.model, adapters_dir=config.adapters_dir)
        stack.push_async_callback(engine.close)
        await engine.start()
        judges = Judges(
            await _open_scorer(config.scorer, stack),
            await _open_scorer(config.judge, stack) if config.judge else None,
            await _open_scorer(config.gold, stack) if config.gold else None,
        )
        redactor = load_redactor(config.store.redact, config.store.redact_timeout_s)
        if redactor is not None:
            stack.push_async_callback(redactor.close)
        gateway = _assemble(config, metrics, store, engine, judges, gatekeeper, redactor, tracing)
        await gateway.controller.restore()
        await gatekeeper.keyring.refresh()  # loading models may have taken minutes
        stack.push_async_callback(gateway.controller.close)
        told_by_store = StoreMetrics(
            config.trainer.gate.kl_budget_nats, trainer_expected=config.trainer.expected
        )
        metrics.registry.register(told_by_store)
        stack.callback(metrics.registry.unregister, told_by_store)
        loops = [
            asyncio.create_task(gateway.controller.run(), name="controller"),
            asyncio.create_task(gateway.controller.sweep_forever(), name="sweep"),
            asyncio.create_task(gateway.after_answer.run(), name="after answer"),
            asyncio.create_task(gatekeeper.keyring.run(), name="keys"),
            asyncio.create_task(gatekeeper.limiter.run(), name="limits"),
            asyncio.create_task(gateway.idempotency.run(), name="idempotency"),
            asyncio.create_task(gateway.retention.run(), name="retention"),
            asyncio.create_task(told_by_store.run(store), name="store metrics"),
        ]
        try:
            yield gateway
        finally:
            await gateway.background.drain(DRAIN_S)
            await gateway.after_answer.drain(DRAIN_S)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


async def _open_scorer(config: ScorerConfig, stack: AsyncExitStack) -> Scorer:
    scorer = build_scorer(config)
    stack.push_async_callback(scorer.close)
    await scorer.start()
    return scorer


def _assemble(
    config: BondConfig,
    metrics: Metrics,
    store: Store,
    engine: Engine,
    judges: Judges,
    gatekeeper: Gatekeeper,
    redactor: Redactor | None,
    tracing: "Tracing | None",
) -> Gateway:
    metrics.model_info.labels(engine.info.base_model).set(1)
    for role, upstream in (
        ("engine", engine),
        ("scorer", judges.scorer),
        ("judge", judges.judge),
        ("gold", judges.gold),
    ):
        metrics.upstreams.watch(role, upstream)
    background = Background()
    residents = (
        DEFAULT_RESIDENT_VERSIONS
        if isinstance(config.engine, FakeEngineConfig)
        else config.engine.max_adapters
    )
    arms = servable_arms(config.arms, engine.info)
    policies = PolicyRegistry(store.policies, engine, config.adapters_dir, residents, metrics)
    after_answer = AfterAnswer(
        store.completions, engine, policies, judges, metrics, config.sampling.temperature
    )
    admission = Admission(
        config.admission.rows_at_once(config.engine),
        config.admission.rows_waiting(config.engine),
        config.admission.max_wait_s,
        metrics,
    )
    sampled_by, selected_by = engine, judges.scorer
    if tracing is not None:
        from bond_server.tracing.upstreams import traced_engine, traced_scorer

        metrics.answers.on_answer.append(tracing.answered)
        sampled_by = traced_engine(engine, tracing)
        selected_by = traced_scorer(judges.scorer, tracing)
    generation = GenerationService(
        sampled_by,
        selected_by,
        policies,
        Recording(store.completions, config, metrics, background, redactor),
        after_answer,
        arms,
        metrics,
        background,
        admission,
        pricing_of(config.prices, metrics),
    )
    return Gateway(
        config=config,
        metrics=metrics,
        store=store,
        engine=engine,
        judges=judges,
        policies=policies,
        models=Models(engine.info.base_model, policies, adapters=engine.info.adapters),
        generation=generation,
        admission=admission,
        comparison=ComparisonService(generation, judges.scorer, store.completions, after_answer),
        after_answer=after_answer,
        controller=Controller(store, policies, after_answer, metrics, config.server.policy_poll_s),
        idempotency=Idempotency(
            store.idempotency,
            keep_s=config.store.retention.replay_hours * 3600,
            wait_s=config.server.idempotency_wait_s,
        ),
        stored=StoredService(store, redactor),
        retention=Retention(store, config.store.retention, metrics),
        background=background,
        gatekeeper=gatekeeper,
        started_at=time.time(),
    )
