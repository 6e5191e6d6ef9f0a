"""Requests that end without an answer, and what they cost."""

import asyncio
from dataclasses import replace
from types import TracebackType

from bond_core.errors import DeadlineError, InvalidRequestError
from bond_core.store.records import CompletionRecord
from bond_server.access.meter import estimate
from bond_server.metrics import Metrics
from bond_server.services.ask import Ask, Plan
from bond_server.services.background import Background
from bond_server.services.recording import Recording


class Accounting:
    """Failures and cancellations are rows of their arm too; the caller's mistakes are not."""

    def __init__(self, recording: Recording, metrics: Metrics, background: Background) -> None:
        self._recording = recording
        self._metrics = metrics
        self._background = background

    def of(self, ask: Ask, plan: Plan, draft: CompletionRecord, reserved: int) -> "_Accounted":
        """Around the work on an answer, which counts as assigned from here on."""
        self._metrics.assignments(plan.arm.value).inc()
        return _Accounted(self, ask, draft, reserved)

    def began(self) -> None:
        """One more is in the making."""
        self._metrics.in_flight.inc()

    def ended(self) -> None:
        """One less."""
        self._metrics.in_flight.dec()

    def cancelled(self, ask: Ask, draft: CompletionRecord) -> None:
        """Its client, or a shutdown, ended it."""
        self._recording.commit_cancellation(draft, ask.context.started)

    async def failed(
        self, ask: Ask, draft: CompletionRecord, reserved: int, error: Exception
    ) -> None:
        """It raised; what was drawn in vain until a deadline is paid for."""
        if isinstance(error, DeadlineError):
            draft = replace(
                draft, prompt_token_ids=error.prompt_token_ids, cut_tokens=error.cut_tokens
            )
            # an engine that was cut before its first word has the prompt before it too
            unknown = not error.prompt_token_ids
            prompt_tokens = estimate(ask.messages, 0, 1) if unknown else 0
            ask.context.meter.spend(draft.total_tokens + prompt_tokens, reserved)
        reason = f"{type(error).__name__}: {error}"
        recording = self._recording.commit_failure(draft, ask.context.started, reason)
        # it is written even if the caller goes away meanwhile
        await asyncio.shield(self._background.spawn(recording, f"record failed {draft.id}"))


class _Accounted:
    """A class, as a generator would cost each request several times as much."""

    __slots__ = ("_accounting", "_ask", "_draft", "_reserved")

    def __init__(
        self, accounting: Accounting, ask: Ask, draft: CompletionRecord, reserved: int
    ) -> None:
        self._accounting = accounting
        self._ask = ask
        self._draft = draft
        self._reserved = reserved

    async def __aenter__(self) -> None:
        self._accounting.began()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                self._accounting.cancelled(self._ask, self._draft)
            elif isinstance(error, Exception) and not isinstance(error, InvalidRequestError):
                await self._accounting.failed(self._ask, self._draft, self._reserved, error)
        finally:
            self._accounting.ended()
