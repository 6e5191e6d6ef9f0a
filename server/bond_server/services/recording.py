"""Rows of the log: how a request becomes one, and that it is committed before the answer."""

import logging
from dataclasses import replace

from bond_core.config import BondConfig
from bond_core.errors import StoreUnavailableError
from bond_core.store import Completions
from bond_core.store.records import CompletionRecord
from bond_core.store.settlement import Settlement
from bond_core.types import Candidate
from bond_server.ids import uuid7
from bond_server.metrics import Metrics
from bond_server.services.ask import Ask, Plan
from bond_server.services.background import Background
from bond_server.services.draft import Draft
from bond_server.services.redaction import RedactionError, Redactor

logger = logging.getLogger(__name__)


class Recording:
    """Writes one row per request, also of those that failed or were given up."""

    def __init__(
        self,
        completions: Completions,
        config: BondConfig,
        metrics: Metrics,
        background: Background,
        redactor: Redactor | None = None,
    ) -> None:
        self._completions = completions
        self._keep_content = config.server.log_content
        self._train_by_default = config.server.train_on_traffic
        self._standard = config.sampling.params()
        self._redactor = redactor
        self._metrics = metrics
        self._background = background

    def draft(self, ask: Ask, plan: Plan) -> Draft:
        """The row's beginning, of a request that has just been planned."""
        caller = ask.context.caller
        default = _given(caller.may_train, self._train_by_default)
        return Draft(
            id=uuid7(),
            ask=ask,
            plan=plan,
            keep_content=_given(caller.log_content, self._keep_content),
            consents=_given(ask.may_store, default) and caller.may_train is not False,
            standard=ask.params.same_distribution(self._standard),
        )

    async def commit(self, record: CompletionRecord, settlement: Settlement | None = None) -> None:
        """Return once the row is committed, and with it the end of the request's claim.

        Raises `StoreUnavailableError`.
        """
        try:
            row = await self._kept(record)
            if settlement is not None and (row.redacted or not row.messages):
                settlement = settlement.without_answer()
            await self._completions.record(row, settlement)
        except Exception:  # a defect of ours is no answer either
            self._metrics.answers.requests(record.arm.value, "failed").inc()
            raise
        self._metrics.answers.log_rows(record.arm.value, record.status).inc()

    async def _kept(self, record: CompletionRecord) -> CompletionRecord:
        """What of the record is stored: all of it, with other words, or without content."""
        if not record.keep_content:
            return without_content(record)
        if self._redactor is None:
            return record
        try:
            row = await self._redactor.redacted(record)
        except RedactionError as error:
            logger.error("row %s is kept without content: %s", record.id, error)
            self._metrics.keeping.redactions.labels("failed").inc()
            return without_content(record)
        self._metrics.keeping.redactions.labels("unchanged" if row is record else "changed").inc()
        return row

    async def commit_failure(self, row: CompletionRecord) -> None:
        """Record an answer that could not be made; it counts in its arm.

        The caller is about to report the failure itself, so a store that fails too is logged.
        """
        try:
            await self.commit(row)
        except StoreUnavailableError as store_error:
            logger.error("a failed answer was not recorded: %s", store_error)
            return
        self._metrics.answers.requests(row.arm.value, row.status).inc()
        self._metrics.answers.generation_tokens.labels(row.arm.value).inc(row.generated_tokens)
        for told in self._metrics.answers.on_failure:
            told(row)

    def commit_cancellation(self, row: CompletionRecord) -> None:
        """Record, in the background, an answer that was given up."""
        self._background.spawn(self._commit_cancelled(row), f"record cancelled {row.id}")

    async def _commit_cancelled(self, row: CompletionRecord) -> None:
        await self.commit(row)
        self._metrics.answers.requests(row.arm.value, row.status).inc()


def _given(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def without_content(record: CompletionRecord) -> CompletionRecord:
    """The row with its numbers alone: nobody's words, and no tokens to rebuild them from.

    Token ids are replaced by zeros, one for each, because how many they were is a number.
    """
    candidates = tuple(
        Candidate(
            candidate.index,
            replace(
                candidate.completion,
                text="",
                details=(),
                tool_calls=(),
                reasoning="",
                token_ids=(0,) * len(candidate.completion.token_ids),
            ),
            candidate.score,
        )
        for candidate in record.candidates
    )
    return replace(
        record,
        messages=(),
        params=replace(record.params, stop=(), further={}),  # tools and formats are words too
        candidates=candidates,
        prompt_token_ids=(0,) * len(record.prompt_token_ids),
        may_train=False,
        stored=False,
        origin=replace(record.origin, metadata={}),
        error=None if record.error is None else record.error.partition(":")[0],
    )
