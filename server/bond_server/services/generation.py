"""The life of one request: plan, draw, choose, record, and only then answer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from bond_core.config import ArmsConfig
from bond_core.engines import Engine
from bond_core.errors import EngineUnavailableError
from bond_core.rewards import Scorer
from bond_core.store.records import CompletionRecord
from bond_core.types import REFERENCE_VERSION, Arm, Candidate, Generation, TextDelta
from bond_server.metrics import Metrics
from bond_server.services.accounting import Accounting
from bond_server.services.admission import Admission, Line
from bond_server.services.after_answer import AfterAnswer
from bond_server.services.arms import refuse_distilled
from bond_server.services.ask import Ask, Plan, StrategyName, make_plan
from bond_server.services.background import Background
from bond_server.services.best_of_n import Selection, select, unranked
from bond_server.services.draft import Draft
from bond_server.services.drawing import Drawn, Work, draw_all, draw_until, stream_until
from bond_server.services.idempotency import settling
from bond_server.services.policies import PolicyRegistry
from bond_server.services.pricing import CostOf
from bond_server.services.recording import Recording
from bond_server.services.scoring_time import ScoringTime

NOTE_NOTHING_PROMOTED = "no version is live: distilled is the reference"


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that has its plan and its row's name, and nothing else yet."""

    draft: Draft
    reserved: int = 0
    """Tokens that are set aside for it."""
    line: Line | None = None
    """Of several answers to one request: those that are admitted with it."""

    @property
    def ask(self) -> Ask:
        """What was asked."""
        return self.draft.ask

    @property
    def plan(self) -> Plan:
        """How it is answered."""
        return self.draft.plan


@dataclass(frozen=True, slots=True)
class Answer:
    """A committed answer."""

    record: CompletionRecord
    strategy: StrategyName
    overhead_s: float
    commit_s: float
    """The part of the overhead that committing the row took."""
    note: str | None
    cost_usd: float | None = None
    """None without prices."""

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
        admission: Admission,
        cost_of: CostOf | None = None,
    ) -> None:
        self._admission = admission
        self._cost_of = cost_of
        self._background = background
        self._engine = engine
        self._scorer = scorer
        self._policies = policies
        self._recording = recording
        self._after_answer = after_answer
        self._arms = arms
        self._accounting = Accounting(recording, metrics, background)
        self._scoring_time = ScoringTime()
        self._metrics = metrics

    def plan(self, ask: Ask) -> Plan:
        """How a request would be answered now. Raises `InvalidRequestError`."""
        plan = make_plan(ask, self._arms, self._policies.active)
        if plan.arm is Arm.DISTILLED:
            refuse_distilled(self._engine.info)
        return plan

    async def begin(self, ask: Ask) -> Begun:
        """Plan a request, name its row, and set its tokens aside from what its key may use.

        Raises `InvalidRequestError`, and the error of a limit that is reached.
        """
        [begun] = await self.begin_all([ask])
        return begun

    async def begin_all(self, asks: Sequence[Ask]) -> list[Begun]:
        """Begin the asks of one request, which are of the same length: all of them, or none."""
        plans = [self.plan(ask) for ask in asks]
        first = asks[0]
        reserved = await first.context.meter.reserve(
            [ask.messages for ask in asks], first.params.max_tokens, [p.best_of for p in plans]
        )
        return [
            Begun(self._recording.draft(ask, plan), tokens)
            for ask, plan, tokens in zip(asks, plans, reserved, strict=True)
        ]

    async def answer(self, begun: Begun, *, follow_up: bool = True) -> Answer:
        """Answer one request; its row is committed when this returns.

        Raises `InvalidRequestError`, `OverloadedError`, `EngineUnavailableError`, `DeadlineError`
        or `StoreUnavailableError`. With `follow_up` false the caller judges single samples itself.
        """
        async with self._places(begun) as queue_s:
            begun.draft.queue_s = queue_s
            async with self._accounting.of(begun.draft, begun.reserved):
                drawn = await self._draw(begun)
                selection = await self._choose(begun, drawn)
            return await self._finish(begun, drawn, selection, follow_up)

    async def stream(self, begun: Begun) -> AsyncGenerator[TextDelta | Answer]:
        """The pieces of a single sample as they are drawn, then the answer, whose row is committed
        by then; of a selection, or of several samples, the answer alone.

        Raises as `answer` does. Whoever stops reading has to close it.
        """
        ask, plan = begun.ask, begun.plan
        if not plan.streams:
            yield await self.answer(begun)
            return
        async with self._places(begun) as queue_s:
            begun.draft.queue_s = queue_s
            async with self._accounting.of(begun.draft, begun.reserved):
                async with self._policies.using(plan.version):
                    started = time.perf_counter()
                    work = Work(plan.version, ask.messages, ask.params, 1)
                    deltas = stream_until(self._engine, work, self.until(begun))
                    completed: TextDelta | None = None
                    told = self._metrics.answers.streaming(plan.arm.value, ask.context.started)
                    async with contextlib.aclosing(deltas) as pieces:
                        async for piece in pieces:
                            told.piece()
                            if piece.completion is not None:
                                completed = piece
                            yield piece
                    generate_s = time.perf_counter() - started
                if completed is None or completed.completion is None:
                    raise EngineUnavailableError("the engine ended a stream without its answer")
                generation = Generation(completed.prompt_token_ids, (completed.completion,))
                drawn = Drawn(generation, (0,), generate_s)
            yield await self._finish(begun, drawn, unranked(drawn, 1), follow_up=True)

    def until(self, begun: Begun) -> float | None:
        """The request's deadline by the loop's clock; None if it has none."""
        remaining_s = self._remaining_s(begun)
        return None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s

    def _places(self, begun: Begun) -> AbstractAsyncContextManager[float]:
        """Places of a request's candidates, held until its row is committed."""
        within_s = self._remaining_s(begun)
        return self._admission.admitted(begun.plan.best_of, within_s, begun.line)

    async def _finish(
        self, begun: Begun, drawn: Drawn, selection: Selection, follow_up: bool
    ) -> Answer:
        """The committed answer; the row is written even if the caller goes away meanwhile."""
        record = _complete(begun, drawn, selection)
        committing = asyncio.create_task(self._commit(begun, record, follow_up))
        try:
            overhead_s, commit_s = await asyncio.shield(committing)
        except (asyncio.CancelledError, GeneratorExit):
            self._background.adopt(committing)  # the row is on its way; it is an answer
            if not follow_up:  # who would have it measured has gone

                def measure(committed: asyncio.Task[tuple[float, float]]) -> None:
                    if not committed.cancelled() and committed.exception() is None:
                        self._after_answer.submit(record)

                committing.add_done_callback(measure)
            raise
        return self._answer(begun, record, overhead_s, commit_s)

    def _answer(
        self, begun: Begun, record: CompletionRecord, overhead_s: float, commit_s: float
    ) -> Answer:
        cost_usd = None if self._cost_of is None else self._cost_of(record)
        strategy, note = begun.plan.strategy, _note(begun.plan)
        return Answer(record, strategy, overhead_s, commit_s, note, cost_usd)

    def _uncommitted(self, begun: Begun, record: CompletionRecord) -> Answer:
        """The answer as it is known before its commit."""
        outside_s = record.queue_s + record.generate_s + record.score_s
        return self._answer(begun, record, record.latency_s - outside_s, 0.0)

    async def _commit(
        self, begun: Begun, record: CompletionRecord, follow_up: bool
    ) -> tuple[float, float]:
        """Commit, count and pass on; returns the gateway's own time, and the commit's part of it,
        in seconds."""
        started = time.perf_counter()
        self._after_answer.expect(record.id)
        try:
            if (claim := begun.ask.claim) is None:
                await self._recording.commit(record)
            else:
                async with settling(claim, self._uncommitted(begun, record)) as settlement:
                    await self._recording.commit(record, settlement)
        except BaseException:
            self._after_answer.forget(record.id)
            raise
        begun.ask.context.meter.spend(record.total_tokens, begun.reserved)
        now = time.perf_counter()
        outside_s = record.queue_s + record.generate_s + record.score_s
        overhead_s = now - begun.ask.context.started - outside_s
        self._metrics.answers.answered(record, overhead_s)
        if follow_up:
            self._after_answer.submit(record)
        return overhead_s, now - started

    async def _draw(self, begun: Begun) -> Drawn:
        plan, ask = begun.plan, begun.ask
        async with self._policies.using(plan.version):
            work = Work(plan.version, ask.messages, ask.params, plan.best_of)
            if (remaining_s := self._remaining_s(begun)) is None:
                return await draw_all(self._engine, work)
            within_s = remaining_s
            if plan.strategy == "best_of_n":
                within_s -= self._scoring_time.set_aside_s(remaining_s)
            return await draw_until(self._engine, work, within_s)

    async def _choose(self, begun: Begun, drawn: Drawn) -> Selection:
        plan, ask = begun.plan, begun.ask
        if plan.strategy == "single":
            return unranked(drawn, plan.n)
        selection = await select(
            self._scorer, ask.messages, drawn, plan.n, within_s=self._remaining_s(begun)
        )
        self._metrics.answers.score_latency.observe(selection.score_s)
        self._scoring_time.observe(selection.score_s)
        return selection

    def _remaining_s(self, begun: Begun) -> float | None:
        """Time until the request's deadline; None if it has none."""
        deadline_s = begun.ask.deadline_s or self._arms.deadline_s
        if deadline_s is None:
            return None
        return begun.ask.context.started + deadline_s - time.perf_counter()


def _complete(begun: Begun, drawn: Drawn, selection: Selection) -> CompletionRecord:
    first = selection.chosen[0]
    return begun.draft.record(
        prompt_token_ids=drawn.generation.prompt_token_ids,
        candidates=selection.candidates,
        cut_tokens=drawn.cut_tokens,
        chosen=selection.chosen,
        degraded=selection.degraded,
        error=selection.error,
        generate_s=drawn.generate_s,
        score_s=selection.score_s,
        latency_s=time.perf_counter() - begun.ask.context.started,
        score=next(c.score for c in selection.candidates if c.index == first),
    )


def _note(plan: Plan) -> str | None:
    if plan.arm is Arm.DISTILLED and plan.version == REFERENCE_VERSION:
        return NOTE_NOTHING_PROMOTED
    return None
