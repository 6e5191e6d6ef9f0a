"""The life of one request: plan, draw, choose, record, and only then answer."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from bond_core.config import ArmsConfig
from bond_core.engines import Engine
from bond_core.errors import InvalidRequestError
from bond_core.rewards import Scorer
from bond_core.store.records import CompletionRecord
from bond_core.types import REFERENCE_VERSION, Arm, Candidate, Generation
from bond_server.metrics import Metrics
from bond_server.services.after_answer import AfterAnswer
from bond_server.services.arms import refuse_distilled
from bond_server.services.ask import Ask, Plan, StrategyName, make_plan
from bond_server.services.background import Background
from bond_server.services.best_of_n import Selection, select, unranked
from bond_server.services.policies import PolicyRegistry
from bond_server.services.recording import Recording

NOTE_NOTHING_PROMOTED = "no version has been promoted yet: distilled is the reference"


@dataclass(frozen=True, slots=True)
class Answer:
    """A committed answer."""

    record: CompletionRecord
    strategy: StrategyName
    overhead_s: float
    note: str | None

    @property
    def returned(self) -> list[Candidate]:
        """The candidates that the client gets, best first."""
        by_index = {candidate.index: candidate for candidate in self.record.candidates}
        return [by_index[index] for index in self.record.chosen]


class GenerationService:
    """Answers asks by the strategy and policy that their plan says."""

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        policies: PolicyRegistry,
        recording: Recording,
        after_answer: AfterAnswer,
        arms: ArmsConfig,
        metrics: Metrics,
        background: Background,
    ) -> None:
        self._background = background
        self._engine = engine
        self._scorer = scorer
        self._policies = policies
        self._recording = recording
        self._after_answer = after_answer
        self._arms = arms
        self._metrics = metrics

    def plan(self, ask: Ask) -> Plan:
        """How a request would be answered now. Raises `InvalidRequestError`."""
        plan = make_plan(ask, self._arms, self._policies.active)
        if plan.arm is Arm.DISTILLED:
            refuse_distilled(self._engine.info)
        return plan

    async def answer(self, ask: Ask, *, follow_up: bool = True) -> Answer:
        """Answer one request; its row is committed when this returns.

        Raises `InvalidRequestError`, `EngineUnavailableError` or `StoreUnavailableError`. With
        `follow_up` false the caller judges single samples itself.
        """
        plan = self.plan(ask)
        draft = self._recording.draft(ask, plan)
        self._metrics.assignments.labels(plan.arm.value).inc()
        with self._metrics.in_flight.track_inprogress():
            async with self._accounted(draft, ask.context.started):
                generation, generate_s = await self._draw(ask, plan)
                selection = await self._choose(ask, plan, generation)
            record = _complete(draft, generation, selection, generate_s, ask.context.started)
            finishing = asyncio.create_task(self._finish(record, plan, ask, follow_up))
            try:
                overhead_s = await asyncio.shield(finishing)
            except asyncio.CancelledError:
                self._background.adopt(finishing)  # the row is on its way; it is an answer
                raise
        return Answer(record, plan.strategy, overhead_s, _note(plan))

    async def _finish(
        self, record: CompletionRecord, plan: Plan, ask: Ask, follow_up: bool
    ) -> float:
        """Commit, count and pass on; returns the gateway's own time in seconds."""
        self._after_answer.expect(record.id)
        try:
            uncommitted = Answer(record, plan.strategy, record.overhead_s, _note(plan))
            await self._recording.commit(record, ask.claim and ask.claim.settle(uncommitted))
        except BaseException:
            self._after_answer.forget(record.id)
            raise
        elapsed = time.perf_counter() - ask.context.started
        overhead_s = elapsed - record.generate_s - record.score_s
        self._metrics.answered(record, overhead_s)
        if follow_up:
            self._after_answer.submit(record)
        return overhead_s

    async def _draw(self, ask: Ask, plan: Plan) -> tuple[Generation, float]:
        async with self._policies.using(plan.version):
            started = time.perf_counter()
            generation = await self._engine.generate(
                plan.version, ask.messages, ask.params, plan.best_of
            )
            return generation, time.perf_counter() - started

    async def _choose(self, ask: Ask, plan: Plan, generation: Generation) -> Selection:
        if plan.strategy == "single":
            return unranked(generation.completions, plan.n)
        selection = await select(self._scorer, ask.messages, generation.completions, plan.n)
        self._metrics.score_latency.observe(selection.score_s)
        return selection

    @asynccontextmanager
    async def _accounted(self, draft: CompletionRecord, started: float) -> AsyncGenerator[None]:
        """Failures and cancellations are rows of their arm too; the caller's mistakes are not."""
        try:
            yield
        except asyncio.CancelledError:
            self._recording.commit_cancellation(draft, started)
            raise
        except InvalidRequestError:
            raise
        except Exception as error:
            await self._recording.commit_failure(draft, started, f"{type(error).__name__}: {error}")
            raise


def _complete(
    draft: CompletionRecord,
    generation: Generation,
    selection: Selection,
    generate_s: float,
    started: float,
) -> CompletionRecord:
    first = selection.candidates[selection.chosen[0]]
    return replace(
        draft,
        prompt_token_ids=generation.prompt_token_ids,
        candidates=selection.candidates,
        chosen=selection.chosen,
        degraded=selection.degraded,
        error=selection.error,
        generate_s=generate_s,
        score_s=selection.score_s,
        latency_s=time.perf_counter() - started,
        score=first.score,
    )


def _note(plan: Plan) -> str | None:
    if plan.arm is Arm.DISTILLED and plan.version == REFERENCE_VERSION:
        return NOTE_NOTHING_PROMOTED
    return None
