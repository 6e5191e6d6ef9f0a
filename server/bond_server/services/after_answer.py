"""What is measured after the answer has gone out: scores of single samples, judge, gold, log-ratio.

Off the hot path, one batch at a time. The queue is bounded and lives in memory; what it misses,
in a restart say, a sweep over the log finds again.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bond_core.engines import Engine
from bond_core.errors import BondError, ScoringError, StoreUnavailableError
from bond_core.rewards import Scorer
from bond_core.store import Completions
from bond_core.store.records import Annotation, CompletionRecord
from bond_core.types import REFERENCE_VERSION, Arm, judged_as
from bond_server.metrics import Metrics
from bond_server.services.policies import PolicyRegistry

logger = logging.getLogger(__name__)

QUEUE_ROWS = 10_000
BATCH_ROWS = 32
SWEEP_ROWS = 512
GATHER_S = 0.02
"""How long a row may wait for others: nobody waits for its numbers, and a call to a scorer and a
transaction cost the same for one row as for many."""


@dataclass(frozen=True, slots=True)
class Judges:
    """Who measures answers; only the first one ever decides anything on the hot path."""

    scorer: Scorer
    judge: Scorer | None = None
    gold: Scorer | None = None


class AfterAnswer:
    """A queue of committed rows and the worker that measures them."""

    def __init__(
        self,
        completions: Completions,
        engine: Engine,
        policies: PolicyRegistry,
        judges: Judges,
        metrics: Metrics,
        temperature: float,
    ) -> None:
        self._completions = completions
        self._engine = engine
        self._policies = policies
        self._judges = judges
        self._metrics = metrics
        self._temperature = temperature
        self._queue: asyncio.Queue[CompletionRecord] = asyncio.Queue(QUEUE_ROWS)
        self._pending: set[str] = set()
        self._tried: set[str] = set()
        self._settled = 0
        metrics.follow_up.queue.set_function(self._queue.qsize)

    def expect(self, id_: str) -> None:
        """Announce a row that is about to be committed, so that no sweep takes it first."""
        self._pending.add(id_)

    def forget(self, id_: str) -> None:
        """Withdraw an announcement: the row was not committed, or a sweep may have it."""
        self._pending.discard(id_)

    def submit(self, record: CompletionRecord) -> None:
        """Queue a committed row, with its content; never blocks."""
        self.expect(record.id)
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self._metrics.follow_up.postponed.inc()
            self.forget(record.id)

    async def run(self) -> None:
        """Measure queued rows for ever; a batch that fails is logged and left to the sweep."""
        while True:
            batch = [await self._queue.get()]
            if self._queue.qsize() < BATCH_ROWS - 1:
                await asyncio.sleep(GATHER_S)
            while len(batch) < BATCH_ROWS and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self.measure(batch)
            except StoreUnavailableError as error:
                logger.warning("%d answers wait for the next sweep: %s", len(batch), error.loggable)
            except Exception:
                logger.exception("measuring %d answers failed", len(batch))
            finally:
                for record in batch:
                    self._pending.discard(record.id)
                    self._queue.task_done()

    async def drain(self, timeout_s: float) -> None:
        """Wait until the queue is empty, at most so long; the rest is left to the next sweep."""
        try:
            await asyncio.wait_for(self._queue.join(), timeout_s)
        except TimeoutError:
            logger.info("%d answers are left to the next sweep", self._queue.qsize())

    async def sweep(self) -> int:
        """Measure rows of the log that have been missed; returns how many were tried.

        A row is tried once per life of the gateway. Those below `_settled` are done with: a row
        that cannot be judged, or needs no log-ratio, stays unscored in the store for ever.
        """
        after, settling, tried = self._settled, True, 0
        while page := await self._completions.unscored(SWEEP_ROWS, after_seq=after):
            after = page[-1].seq
            skip = self._pending | self._tried
            missed = [row for row in page if row.id not in skip]
            for start in range(0, len(missed), BATCH_ROWS):
                batch = missed[start : start + BATCH_ROWS]
                try:
                    await self.measure(batch)
                except StoreUnavailableError:
                    raise
                except Exception:  # these are done with; the rows behind them are still missed
                    logger.exception("measuring %d missed answers failed", len(batch))
            tried += len(missed)
            self._tried.update(row.id for row in missed)
            for row in page:
                settling = settling and row.id in self._tried
                if settling:
                    self._settled = row.seq
                    self._tried.discard(row.id)
        return tried

    async def measure(self, batch: Sequence[CompletionRecord]) -> None:
        """Fill in what is missing of each row and write it."""
        rows = [
            row
            for row in batch
            if row.status == "ok" and row.chosen and row.messages and not row.only_calls_tools
        ]
        judges = self._judges
        scores = await self._ask("score", judges.scorer, [r for r in rows if r.score is None])
        judged = await self._ask("judge", judges.judge, [r for r in rows if r.judge_score is None])
        gold = await self._ask("gold", judges.gold, [r for r in rows if r.gold_score is None])
        annotations: list[Annotation] = []
        for row in rows:
            ratio = await self._log_ratio(row)
            if scores.get(row.id) is not None:
                self._metrics.answers.reward(row.arm.value).observe(scores[row.id])
            if ratio is not None and row.arm is Arm.DISTILLED:
                self._metrics.follow_up.log_ratio.observe(ratio)
            annotations.append(
                Annotation(
                    row.id,
                    score=scores.get(row.id),
                    judge_score=judged.get(row.id),
                    gold_score=gold.get(row.id),
                    log_ratio=ratio,
                )
            )
        await self._completions.annotate(annotations)

    async def _ask(
        self, step: str, scorer: Scorer | None, rows: Sequence[CompletionRecord]
    ) -> dict[str, float]:
        """Scores by row id. If a batch fails, each row is tried alone, so that one bad answer
        does not cost the others their score."""
        if scorer is None or not rows:
            return {}
        try:
            values = await scorer.score(
                [judged_as(r.messages) for r in rows], [first_text(r) for r in rows]
            )
        except ScoringError as error:
            if len(rows) > 1:
                alone = [await self._ask(step, scorer, [row]) for row in rows]
                return {id_: value for found in alone for id_, value in found.items()}
            self._metrics.follow_up.failures.labels(step).inc()
            logger.warning(
                "answers have no %s: %s", step, error.loggable, extra={"fields": {"id": rows[0].id}}
            )
            return {}
        return {row.id: value for row, value in zip(rows, values, strict=True)}

    async def _log_ratio(self, row: CompletionRecord) -> float | None:
        """log policy(answer) - log reference(answer) in nats, at the standard temperature.

        Only of answers that are plain samples of their policy: a selected one has another law, and
        so has the first of those that ended before a deadline, which are the short ones.
        """
        selected = (
            row.arm is Arm.BON
            or len(row.candidates) < row.best_of
            or any(c.score is not None for c in row.candidates)
        )
        if selected or not row.standard_sampling or row.log_ratio is not None:
            return None
        if row.version == REFERENCE_VERSION:
            return 0.0
        tokens = [c.completion.token_ids for c in row.candidates if c.index == row.chosen[0]]
        try:
            async with self._policies.using(row.version):
                [policy] = await self._engine.token_logprobs(
                    row.version, row.prompt_token_ids, tokens, self._temperature
                )
            [reference] = await self._engine.token_logprobs(
                REFERENCE_VERSION, row.prompt_token_ids, tokens, self._temperature
            )
        except BondError as error:
            self._metrics.follow_up.failures.labels("log_ratio").inc()
            logger.warning(
                "answers have no log-ratio: %s", error.loggable, extra={"fields": {"id": row.id}}
            )
            return None
        ratio = sum(policy) - sum(reference)
        return ratio if math.isfinite(ratio) else None


def first_text(record: CompletionRecord) -> str:
    """The answer that the client read first."""
    return next(c.completion.text for c in record.candidates if c.index == record.chosen[0])
