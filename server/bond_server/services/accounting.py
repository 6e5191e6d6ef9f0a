"""Requests that end without an answer, and what they cost."""

import asyncio
import time
from types import TracebackType

from bond_core.errors import DeadlineError, InvalidRequestError
from bond_server.access.meter import estimate
from bond_server.metrics import Metrics
from bond_server.services.background import Background
from bond_server.services.draft import Draft
from bond_server.services.recording import Recording


class Accounting:
    """Failures and cancellations are rows of their arm too; the caller's mistakes are not."""

    def __init__(self, recording: Recording, metrics: Metrics, background: Background) -> None:
        self._recording = recording
        self._metrics = metrics
        self._background = background
        self._in_flight = 0
        metrics.admission.in_flight.set_function(lambda: self._in_flight)

    def of(self, draft: Draft, reserved: int) -> "_Accounted":
        """Around the work on an answer, which counts as assigned from here on."""
        plan = draft.plan
        self._metrics.answers.assignments(plan.arm.value, plan.experiment or "").inc()
        return _Accounted(self, draft, reserved)

    def began(self) -> None:
        """One more is in the making."""
        self._in_flight += 1

    def ended(self) -> None:
        """One less."""
        self._in_flight -= 1

    def cancelled(self, draft: Draft) -> None:
        """Its client, or a shutdown, ended it."""
        row = draft.record(
            status="cancelled",
            error="cancelled before it was answered",
            latency_s=_since(draft),
        )
        self._recording.commit_cancellation(row)

    async def failed(self, draft: Draft, reserved: int, error: Exception) -> None:
        """It raised; what was drawn in vain until a deadline is paid for."""
        prompt_token_ids, cut_tokens = (), 0
        if isinstance(error, DeadlineError):
            prompt_token_ids, cut_tokens = error.prompt_token_ids, error.cut_tokens
            # an engine that was cut before its first word has the prompt before it too
            prompt_tokens = len(prompt_token_ids) or estimate(draft.ask.messages, 0, 1)
            draft.ask.context.meter.spend(prompt_tokens + cut_tokens, reserved)
        row = draft.record(
            status="failed",
            error=f"{type(error).__name__}: {error}",
            latency_s=_since(draft),
            prompt_token_ids=prompt_token_ids,
            cut_tokens=cut_tokens,
        )
        recording = self._recording.commit_failure(row)
        # it is written even if the caller goes away meanwhile
        await asyncio.shield(self._background.spawn(recording, f"record failed {draft.id}"))


class _Accounted:
    """A class, as a generator would cost each request several times as much."""

    __slots__ = ("_accounting", "_draft", "_reserved")

    def __init__(self, accounting: Accounting, draft: Draft, reserved: int) -> None:
        self._accounting = accounting
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
                self._accounting.cancelled(self._draft)
            elif isinstance(error, Exception) and not isinstance(error, InvalidRequestError):
                await self._accounting.failed(self._draft, self._reserved, error)
        finally:
            self._accounting.ended()


def _since(draft: Draft) -> float:
    return time.perf_counter() - draft.ask.context.started
