"""The decode thread: it alone touches the model, and shares it out step by step."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bond_core.engines.local.decode_loop import RunningBatch, prefill
from bond_core.engines.local.forward import Forward
from bond_core.engines.local.rows import GenerateRequest
from bond_core.engines.local.scoring import ScoreRequest, score_in_passes
from bond_core.errors import EngineUnavailableError

logger = logging.getLogger(__name__)

_PREFILL_TOKENS = 2048
"""Padded prompt tokens prefilled between two steps; a longer prompt goes alone."""

Request = GenerateRequest | ScoreRequest
_ENDED = object()


class DecodeThread:
    """Runs requests for as long as there are any; sleeps otherwise.

    Each turn: note what has come in, prefill a few newcomers, draw one token for every running row
    (versions one after another), and do one pass of scoring. `submit`, `cancel` and `close` may be
    called from any thread.
    """

    def __init__(
        self,
        forward: Forward,
        tokenizer: Any,
        end_token_ids: Collection[int],
        max_rows: int,
        seed: int | None,
    ) -> None:
        self._forward = forward
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._max_rows = max_rows
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._inbox: deque[Callable[[], None]] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._waiting: deque[GenerateRequest] = deque()
        self._batches: list[RunningBatch] = []
        self._scoring: deque[tuple[ScoreRequest, Iterator[None]]] = deque()
        self.prefills = 0
        """Prompts that have gone through the model, for tests and metrics."""
        self._thread = threading.Thread(target=self._run, name="bond-local-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are being taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def rows(self) -> int:
        """Rows running now."""
        return sum(len(batch.rows) for batch in self._batches)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises `EngineUnavailableError` if the thread has ended."""
        with self._news:
            if not self.alive:
                raise EngineUnavailableError("the local engine is closed; start a new one")
            self._inbox.append(lambda: self._accept(request))
            self._news.notify()

    def cancel(self, request: Request) -> None:
        """Free a request's rows before the next step."""

        def note() -> None:
            request.cancelled = True

        with self._news:
            self._inbox.append(note)
            self._news.notify()

    def close(self) -> None:
        """Fail what is running and end the thread; returns when it has ended."""
        with self._news:
            self._closing = True
            self._news.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while self._receive():
                self._drop_cancelled()
                self._admit()
                for batch in self._batches:
                    self._guard((), batch.step, batch)
                self._batches = [batch for batch in self._batches if batch.rows]
                self._score()
        error = EngineUnavailableError("the local engine was closed while the request ran")
        for request in self._unfinished():
            request.failed(error)

    def _receive(self) -> bool:
        """Take what has come in, waiting if there is nothing else to do. False means: end."""
        with self._news:
            while not (
                self._inbox or self._closing or self._waiting or self._batches or self._scoring
            ):
                self._news.wait()
            news = list(self._inbox)
            self._inbox.clear()
        for note in news:
            note()
        return not self._closing

    def _accept(self, request: Request) -> None:
        if isinstance(request, ScoreRequest):
            self._scoring.append((request, score_in_passes(self._forward, request)))
        else:
            self._waiting.append(request)

    def _drop_cancelled(self) -> None:
        if any(request.cancelled for request in self._waiting):
            self._waiting = deque(r for r in self._waiting if not r.cancelled)
        if any(request.cancelled for request, _ in self._scoring):
            self._scoring = deque((r, p) for r, p in self._scoring if not r.cancelled)
        for batch in self._batches:
            batch.drop_cancelled()

    def _admit(self) -> None:
        """Start waiting candidates in order of arrival, as far as rows are free."""
        group = self._next_group()
        if not group:
            return
        fresh = [request for request, _ in group if request.prompt is None]
        if fresh:
            self._guard(fresh, partial(prefill, self._forward, fresh), None)
            self.prefills += len(fresh)
        batch = self._batch_of(group[0][0])
        for request, count in group:
            if not request.cancelled:
                start = partial(batch.start, request, count)
                self._guard([request], start, batch, only_if_torn=True)

    def _next_group(self) -> list[tuple[GenerateRequest, int]]:
        """Requests of one version and how many of their candidates to start now.

        A request leaves the queue when all its candidates start; one that does not fit whole stays
        at the head, with its prefill, until rows become free.
        """
        free = self._max_rows - self.rows
        group: list[tuple[GenerateRequest, int]] = []
        longest = 0
        while self._waiting and free > 0:
            request = self._waiting[0]
            longest = max(longest, len(request.prompt_token_ids))
            if group and (
                request.weights is not group[0][0].weights
                or longest * (len(group) + 1) > _PREFILL_TOKENS
            ):
                break
            count = min(free, request.n - request.started)
            group.append((request, count))
            free -= count
            if request.started + count < request.n:
                break
            self._waiting.popleft()
        return group

    def _batch_of(self, request: GenerateRequest) -> RunningBatch:
        for batch in self._batches:
            if batch.weights is request.weights:
                return batch
        batch = RunningBatch(
            request.weights, self._forward, self._tokenizer, self._end_token_ids, self._generator
        )
        self._batches.append(batch)
        return batch

    def _score(self) -> None:
        """One pass of the scoring request that has waited longest; then it goes to the back."""
        if not self._scoring:
            return
        request, passes = self._scoring.popleft()

        def one_pass() -> None:
            self._forward.use(request.weights)
            if next(passes, _ENDED) is not _ENDED:
                self._scoring.append((request, passes))

        self._guard([request], one_pass, None)

    def _guard(
        self,
        requests: Sequence[Request],
        work: Callable[[], None],
        batch: RunningBatch | None,
        *,
        only_if_torn: bool = False,
    ) -> None:
        """Do a piece of work. If it fails, its requests and its batch's fail; others go on.

        With `only_if_torn`, those of the batch fail only if the work has left its cache torn.
        """
        try:
            work()
        except Exception as error:
            logger.exception("the local engine failed a batch of requests")
            failure = EngineUnavailableError(
                f"the local engine failed on this request's batch: {error!r}; try again"
            )
            failure.__cause__ = error
            hit = dict.fromkeys(requests)
            if batch is not None and (batch.torn or not only_if_torn):
                hit.update(dict.fromkeys(batch.abandon()))
            for request in hit:
                request.cancelled = True
                request.failed(failure)

    def _unfinished(self) -> list[Request]:
        running = [row.request for batch in self._batches for row in batch.rows]
        scoring = [request for request, _ in self._scoring]
        return list(dict.fromkeys([*running, *self._waiting, *scoring]))
