"""Prometheus metrics of one gateway, in a registry of its own."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Protocol, get_args, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bond_core import __version__
from bond_core.store.records import CompletionRecord, CompletionStatus
from bond_core.types import Arm

LATENCY_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""vLLM's buckets of its end-to-end request latency, so that the two can be laid side by side."""

FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
)  # fmt: skip
"""vLLM's 1-2-5 series; its own ends at the model's context."""
N_BUCKETS = (1, 2, 5, 10, 20)
"""All of the above are vLLM's."""

SCORE_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
OVERHEAD_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
REWARD_BUCKETS = (-20, -10, -7, -5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 5, 7,
                  10, 20)  # fmt: skip
"""Raw scores have no scale of their own; these are dense where reward models put their logits."""
LOG_RATIO_BUCKETS_NATS = (-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5, 7, 10, 20, 50)


@runtime_checkable
class HasServers(Protocol):
    """An engine or scorer that asks servers over HTTP."""

    def servers(self) -> Mapping[str, bool]:
        """Whether each server takes requests, by its base URL."""
        ...


class Upstreams(Collector):
    """Which of the servers that answers depend on are up, asked for when the metrics are."""

    def __init__(self) -> None:
        self._sources: list[tuple[str, HasServers]] = []

    def watch(self, role: str, source: object) -> None:
        """Tell the servers of an engine or scorer from now on, if it has any."""
        if isinstance(source, HasServers):
            self._sources.append((role, source))

    def collect(self) -> Iterable[Metric]:
        """One sample per server."""
        family = GaugeMetricFamily(
            "bond_server_up", "1 while a server takes requests.", labels=("role", "server")
        )
        for role, source in self._sources:
            for url, up in source.servers().items():
                family.add_metric((role, url), float(up))
        return (family,)


class Metrics:
    """All instruments; a request's labels are its arm and how it ended."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"bond_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"bond_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"bond_{name}", text, labels, buckets=buckets, registry=registry)

        gauge("build_info", "The running version of bondserve.", "version").labels(__version__).set(
            1
        )
        self.model_info = gauge("model_info", "1; the base model.", "model_name")
        self.on_answer: list[Callable[[CompletionRecord], None]] = []
        """Told of every committed answer, in the task of its request."""
        self.on_failure: list[Callable[[CompletionRecord], None]] = []
        """Told of every committed failure: tokens may have been drawn for it."""
        self.upstreams = Upstreams()
        registry.register(self.upstreams)
        # children that every request needs are looked up through a cache, at a tenth of the cost
        self.http_requests = cache(
            counter(
                "http_requests_total", "HTTP requests by route and status.",
                "route", "method", "code",
            ).labels
        )  # fmt: skip
        self.assignments = cache(
            counter(
                "assignments_total", "Requests that began to be answered, by arm and experiment.",
                "arm", "experiment",
            ).labels
        )  # fmt: skip
        self.requests = cache(
            counter("requests_total", "Answers by arm and how they ended.", "arm", "status").labels
        )
        self.log_rows = cache(
            counter(
                "log_rows_total", "Rows committed to the log; equals requests.", "arm", "status"
            ).labels
        )
        for arm, status in itertools.product(Arm, get_args(CompletionStatus)):
            # there from the start at 0: Prometheus sees no increase in a series that is born at 1
            self.requests(arm.value, status)
            self.log_rows(arm.value, status)
        self.expired = counter("expired_total", "What retention has deleted.", "kind")
        self.redactions = counter(
            "redactions_total", "Rows that the redaction function saw.", "outcome"
        )
        self.idempotent_requests = counter(
            "idempotent_requests_total", "Requests with an Idempotency-Key.", "outcome"
        )
        self.candidates = cache(
            counter("candidates_total", "Candidates drawn.", "arm", "finish_reason").labels
        )
        self.prompt_tokens = counter("prompt_tokens_total", "Prompt tokens.", "arm")
        self.generation_tokens = counter(
            "generation_tokens_total", "Tokens generated, all candidates counted.", "arm"
        )
        self.degraded = counter(
            "degraded_total", "Answers that are not what their strategy promises.", "reason"
        )
        self.in_flight = gauge("in_flight_requests", "Requests being answered.")
        self.running_rows = gauge("running_rows", "Candidates of the requests being answered.")
        self.waiting_rows = gauge("waiting_rows", "Candidates of the requests that wait.")
        self.waiting_requests = gauge("waiting_requests", "Requests that wait to be answered.")
        self.admission_refused = counter(
            "admission_refused_total", "Requests that were not begun, by reason.", "reason"
        )
        self.queue_time = histogram(
            "request_queue_time_seconds",
            "Waiting before the work on an answer began.",
            LATENCY_BUCKETS_S,
            "arm",
        )
        self.latency = histogram(
            "request_latency_seconds",
            "Arrival to answer, without its commit.",
            LATENCY_BUCKETS_S,
            "arm",
        )
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "Arrival to the first piece of a streamed answer.",
            FIRST_TOKEN_BUCKETS_S,
            "arm",
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds",
            "Between two pieces of a streamed answer.",
            BETWEEN_TOKENS_BUCKETS_S,
            "arm",
        )
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKEN_BUCKETS, "arm"
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens",
            "Tokens generated for a request, all candidates counted.",
            TOKEN_BUCKETS,
            "arm",
        )
        self.params_n = histogram(
            "request_params_n", "Candidates drawn for a request.", N_BUCKETS, "arm"
        )
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "Longest answer asked for.", TOKEN_BUCKETS, "arm"
        )
        self.score_latency = histogram(
            "score_latency_seconds", "Scoring on the hot path.", SCORE_LATENCY_BUCKETS_S
        )
        self.overhead = histogram(
            "gateway_overhead_seconds",
            "Time of an answer outside engine and scorer, the commit included.",
            OVERHEAD_BUCKETS_S,
        )
        self.reward = cache(
            histogram(
                "reward", "The scorer's raw score of the answers returned.", REWARD_BUCKETS, "arm"
            ).labels
        )
        self.log_ratio = histogram(
            "log_ratio_nats",
            "log policy(answer) - log reference(answer) of distilled answers.",
            LOG_RATIO_BUCKETS_NATS,
        )
        self.follow_up_queue = gauge(
            "follow_up_queue_rows", "Answers waiting to be scored after the fact."
        )
        self.follow_up_failures = counter(
            "follow_up_failures_total", "Answers that could not be judged after the fact.", "step"
        )
        self.follow_up_postponed = counter(
            "follow_up_postponed_total", "Answers left to the sweep because the queue was full."
        )
        self.adapter_info = gauge(
            "adapter_info", "1 for each policy version that the engine holds.", "version", "role"
        )
        self.active_version = gauge(
            "active_policy_version", "Number of the version that 'distilled' means."
        )
        self.promotions = counter(
            "policy_transitions_total", "Versions activated, rejected, rolled back.", "outcome"
        )
        self._arms: dict[str, _ArmInstruments] = {}
        self.controller = gauge("controller", "1 while this gateway holds the controller's lease.")

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

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)


class _ArmInstruments:
    """An arm's own children of what every answer touches: to look each up costs more than to
    count."""

    def __init__(self, metrics: Metrics, arm: str) -> None:
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
