"""Requests that are answered: how they end, what they take, and what they are worth."""

import itertools
import time
from collections.abc import Callable
from functools import cache
from typing import get_args

from prometheus_client import Histogram

from bond_core.store.records import CompletionRecord, CompletionStatus
from bond_core.types import Arm
from bond_server.metrics.buckets import (
    BETWEEN_TOKENS_BUCKETS_S,
    FIRST_TOKEN_BUCKETS_S,
    LATENCY_BUCKETS_S,
    N_BUCKETS,
    OVERHEAD_BUCKETS_S,
    REWARD_BUCKETS,
    SCORE_LATENCY_BUCKETS_S,
    TOKEN_BUCKETS,
)
from bond_server.metrics.instruments import Instruments


class AnswerMetrics:
    """A request's labels are its arm and how it ended.

    Children that every request needs are looked up through a cache, at a tenth of the cost.
    """

    def __init__(self, make: Instruments) -> None:
        self.on_answer: list[Callable[[CompletionRecord], None]] = []
        """Told of every committed answer, in the task of its request."""
        self.on_failure: list[Callable[[CompletionRecord], None]] = []
        """Told of every committed failure: tokens may have been drawn for it."""
        self._arms: dict[str, _ArmInstruments] = {}
        self._count(make)
        self._time(make)
        self._size(make)

    def _count(self, make: Instruments) -> None:
        self.assignments = cache(
            make.counter(
                "assignments_total", "Requests that began to be answered, by arm and experiment.",
                "arm", "experiment",
            ).labels
        )  # fmt: skip
        self.requests = cache(
            make.counter(
                "requests_total", "Answers by arm and how they ended.", "arm", "status"
            ).labels
        )
        self.log_rows = cache(
            make.counter(
                "log_rows_total", "Rows committed to the log; equals requests.", "arm", "status"
            ).labels
        )
        for arm, status in itertools.product(Arm, get_args(CompletionStatus)):
            # there from the start at 0: Prometheus sees no increase in a series that is born at 1
            self.requests(arm.value, status)
            self.log_rows(arm.value, status)
        self.candidates = cache(
            make.counter("candidates_total", "Candidates drawn.", "arm", "finish_reason").labels
        )
        self.degraded = make.counter(
            "degraded_total", "Answers that are not what their strategy promises.", "reason"
        )
        self.reward = cache(
            make.histogram(
                "reward", "The scorer's raw score of the answers returned.", REWARD_BUCKETS, "arm"
            ).labels
        )

    def _time(self, make: Instruments) -> None:
        self.queue_time = make.histogram(
            "request_queue_time_seconds",
            "Waiting before the work on an answer began.",
            LATENCY_BUCKETS_S,
            "arm",
        )
        self.latency = make.histogram(
            "request_latency_seconds",
            "Arrival to answer, without its commit.",
            LATENCY_BUCKETS_S,
            "arm",
        )
        self.first_token = make.histogram(
            "time_to_first_token_seconds",
            "Arrival to the first piece of a streamed answer.",
            FIRST_TOKEN_BUCKETS_S,
            "arm",
        )
        self.between_tokens = make.histogram(
            "inter_token_latency_seconds",
            "Between two pieces of a streamed answer.",
            BETWEEN_TOKENS_BUCKETS_S,
            "arm",
        )
        self.score_latency = make.histogram(
            "score_latency_seconds", "Scoring on the hot path.", SCORE_LATENCY_BUCKETS_S
        )
        self.overhead = make.histogram(
            "gateway_overhead_seconds",
            "Time of an answer outside engine and scorer, the commit included.",
            OVERHEAD_BUCKETS_S,
        )

    def _size(self, make: Instruments) -> None:
        self.prompt_tokens = make.counter("prompt_tokens_total", "Prompt tokens.", "arm")
        self.generation_tokens = make.counter(
            "generation_tokens_total", "Tokens generated, all candidates counted.", "arm"
        )
        self.request_prompt_tokens = make.histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKEN_BUCKETS, "arm"
        )
        self.request_generation_tokens = make.histogram(
            "request_generation_tokens",
            "Tokens generated for a request, all candidates counted.",
            TOKEN_BUCKETS,
            "arm",
        )
        self.params_n = make.histogram(
            "request_params_n", "Candidates drawn for a request.", N_BUCKETS, "arm"
        )
        self.params_max_tokens = make.histogram(
            "request_params_max_tokens", "Longest answer asked for.", TOKEN_BUCKETS, "arm"
        )

    def answered(self, record: CompletionRecord, overhead_s: float) -> None:
        """Count one answer whose row is committed."""
        arm = record.arm.value
        self.requests(arm, record.status).inc()
        prompt_tokens = len(record.prompt_token_ids)
        generated_tokens = record.generated_tokens
        of_arm = self._arms.get(arm)
        if of_arm is None:
            of_arm = self._arms[arm] = _ArmInstruments(self, arm)
        of_arm.prompt_tokens.inc(prompt_tokens)
        of_arm.generation_tokens.inc(generated_tokens)
        of_arm.request_prompt_tokens.observe(prompt_tokens)
        of_arm.request_generation_tokens.observe(generated_tokens)
        of_arm.params_n.observe(record.best_of)
        of_arm.params_max_tokens.observe(record.params.max_tokens)
        for candidate in record.candidates:
            self.candidates(arm, candidate.completion.finish_reason).inc()
        if record.degraded is not None:
            self.degraded.labels(record.degraded).inc()
        if record.score is not None:
            self.reward(arm).observe(record.score)
        of_arm.latency.observe(record.latency_s)
        of_arm.queue_time.observe(record.queue_s)
        for told in self.on_answer:
            told(record)
        self.overhead.observe(max(overhead_s, 0.0))

    def streaming(self, arm: str, arrived: float) -> "TokenTimes":
        """Times the pieces of a streamed answer; `arrived` is of `time.perf_counter()`."""
        return TokenTimes(self.first_token.labels(arm), self.between_tokens.labels(arm), arrived)


class _ArmInstruments:
    """An arm's own children of what every answer touches: to look each up costs more than to
    count."""

    def __init__(self, metrics: AnswerMetrics, arm: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(arm)
        self.generation_tokens = metrics.generation_tokens.labels(arm)
        self.request_prompt_tokens = metrics.request_prompt_tokens.labels(arm)
        self.request_generation_tokens = metrics.request_generation_tokens.labels(arm)
        self.params_n = metrics.params_n.labels(arm)
        self.params_max_tokens = metrics.params_max_tokens.labels(arm)
        self.latency = metrics.latency.labels(arm)
        self.queue_time = metrics.queue_time.labels(arm)


class TokenTimes:
    """When the pieces of one streamed answer come."""

    def __init__(self, first: Histogram, between: Histogram, arrived: float) -> None:
        self._first = first
        self._between = between
        self._last = arrived
        self._started = False

    def piece(self) -> None:
        """A piece is here."""
        now = time.perf_counter()
        (self._between if self._started else self._first).observe(now - self._last)
        self._last, self._started = now, True
