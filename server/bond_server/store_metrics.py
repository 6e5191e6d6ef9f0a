"""Metrics of what the store says: the trainer, the gate's verdicts, the served version's KL.

The trainer listens on no port, so the gateways tell of it. Each tells the same, from the store that
they share: take the maximum over gateways, never the sum.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bond_core.errors import StoreUnavailableError
from bond_core.store import PolicyRecord, Store, TrainingRecord
from bond_core.store.served_kl import ServedKL, served_kl
from bond_core.types import REFERENCE_VERSION, PolicyState

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
NEWEST_VERSIONS = 20
"""Versions of which the gate's figures are told; older ones are in `GET /v1/policies`."""
_STATES: tuple[str, ...] = get_args(TrainingRecord.__annotations__["state"])
_VERDICTS = ("passed", "refused")


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What the store said at one look."""

    run: TrainingRecord | None
    policies: Sequence[PolicyRecord]
    active: str
    served: ServedKL | None


async def look(store: Store) -> StoreStatus:
    """Read everything that is told. Raises `StoreUnavailableError`."""
    active = await store.policies.active()
    return StoreStatus(
        run=await store.training.latest(),
        policies=await store.policies.all(),
        active=active,
        served=await store.database.read(partial(served_kl, version=active)),
    )


class StoreMetrics(Collector):
    """Tells what the last look found, and only that the store is away if it failed: a figure that
    is no longer looked at would hide the newer one of another gateway."""

    def __init__(self, kl_budget_nats: float) -> None:
        self._kl_budget_nats = kl_budget_nats
        self._status: StoreStatus | None = None
        self._up: float | None = None

    async def refresh(self, store: Store) -> None:
        """Look once; a store that does not answer is told as such."""
        try:
            self._status, self._up = await look(store), 1.0
        except StoreUnavailableError as error:
            if self._up != 0.0:
                logger.warning("nothing is known of the trainer: %s", error.loggable)
            self._status, self._up = None, 0.0

    async def run(self, store: Store) -> None:
        """Look for ever; what fails is logged and tried again."""
        while True:
            try:
                await self.refresh(store)
            except Exception:
                logger.exception("the store's metrics could not be read; it goes on")
                self._status, self._up = None, 0.0
            await asyncio.sleep(LOOK_EVERY_S)

    def collect(self) -> Iterable[Metric]:
        """Every family, also those of which nothing is known."""
        status = self._status
        yield _gauge("store_up", "1 if the store answered the last look.", self._up)
        yield _gauge("kl_budget_nats", "The gate's KL budget per answer.", self._kl_budget_nats)
        yield from _of_the_run(None if status is None else status.run)
        yield from _of_the_gate(() if status is None else status.policies)
        yield from _of_the_served(status)


def _of_the_run(run: TrainingRecord | None) -> Iterator[Metric]:
    state = _labelled("training_state", "1 for the trainer's state, 0 for the others.", "state")
    rows = _labelled("training_rows", "Rows of the log that the trainer saw.", "outcome")
    metric = _labelled("training_metric", "The trainer's latest figures.", "name")
    if run is not None:
        for name in _STATES:
            state.add_metric((name,), float(name == run.state))
        for outcome, count in run.counts.items():
            rows.add_metric((outcome,), float(count))
        for name, value in _numbers(run.metrics):
            metric.add_metric((name,), value)
    yield state
    yield _gauge("training_step", "Steps of the run.", None if run is None else float(run.step))
    yield _gauge(
        "training_heartbeat_timestamp_seconds",
        "When the trainer last reported, Unix time.",
        None if run is None else run.heartbeat_at,
    )
    yield rows
    yield metric


def _of_the_gate(policies: Sequence[PolicyRecord]) -> Iterator[Metric]:
    judged = [(record, gate) for record in policies if (gate := record.evaluation.get("gate"))]
    verdicts = Counter("passed" if gate["passed"] else "refused" for _, gate in judged)
    failed = Counter(
        str(check["name"])
        for _, gate in judged
        for check in gate.get("checks", ())
        if not check["passed"]
    )
    verdict = CounterMetricFamily(
        "bond_gate_verdicts", "Challengers that the gate judged.", labels=("verdict",)
    )
    if policies:
        for name in _VERDICTS:
            verdict.add_metric((name,), float(verdicts[name]))
    failures = CounterMetricFamily(
        "bond_gate_failed_checks", "Checks of the gate that failed.", labels=("check",)
    )
    for name, count in sorted(failed.items()):
        failures.add_metric((name,), float(count))
    states = _labelled("policy_versions", "Versions by state, without the reference.", "state")
    held = Counter(r.state for r in policies if r.version != REFERENCE_VERSION)
    if policies:
        for policy_state in PolicyState:
            states.add_metric((policy_state.value,), float(held[policy_state]))
    yield verdict
    yield failures
    yield states
    newest = judged[-NEWEST_VERSIONS:]
    yield _of_versions(
        "gate_reward",
        "Mean reward at the gate.",
        ((r, r.evaluation.get("reward_mean")) for r, _ in newest),
    )
    yield _of_versions(
        "gate_reward_gain",
        "Mean reward over the incumbent's at the gate.",
        ((r, gate.get("reward_gain")) for r, gate in newest),
    )
    yield _of_versions(
        "gate_kl_nats",
        "KL to the reference at the gate, per answer.",
        ((r, r.evaluation.get("kl_nats")) for r, _ in newest),
    )


def _of_the_served(status: StoreStatus | None) -> Iterator[Metric]:
    """Nothing of the reference, whose KL to itself is zero by definition."""
    mean = _labelled("served_kl_nats", "KL of the active version, from the log.", "version")
    error = _labelled("served_kl_standard_error_nats", "Standard error of it.", "version")
    answers = _labelled("served_kl_answers", "Answers that it is a mean of.", "version")
    if status is not None and status.served is not None and status.active != REFERENCE_VERSION:
        mean.add_metric((status.active,), status.served.mean)
        error.add_metric((status.active,), status.served.standard_error)
        answers.add_metric((status.active,), float(status.served.answers))
    return iter((mean, error, answers))


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bond_{name}", text, value)


def _labelled(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bond_{name}", text, labels=(label,))


def _of_versions(
    name: str, text: str, values: Iterable[tuple[PolicyRecord, object]]
) -> GaugeMetricFamily:
    family = _labelled(name, text, "version")
    for record, value in values:
        if isinstance(value, int | float):
            family.add_metric((record.version,), float(value))
    return family


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return (
        (name, float(value))
        for name, value in sorted(metrics.items())
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
