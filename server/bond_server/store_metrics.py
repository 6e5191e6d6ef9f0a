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
from bond_core.store.versions import version_states
from bond_core.types import REFERENCE_VERSION, PolicyState

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
NEWEST_VERSIONS = 20
"""Versions of which the gate's figures are told; older ones are in `GET /v1/policies`."""
_STATES: tuple[str, ...] = get_args(TrainingRecord.__annotations__["state"])


@dataclass(frozen=True, slots=True)
class GateFigures:
    """What the gate found of one version; it never changes."""

    passed: bool
    failed_checks: tuple[str, ...]
    reward: float | None
    reward_gain: float | None
    kl_nats: float | None


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What the store said at one look."""

    run: TrainingRecord | None
    states: Mapping[str, PolicyState]
    """Of every version but the reference, oldest first."""
    gate: Mapping[str, GateFigures]
    """Of those that the gate judged."""
    active: str
    served: ServedKL | None


class StoreMetrics(Collector):
    """Tells what the last look found, and only that the store is away if it failed: a figure that
    is no longer looked at would hide the newer one of another gateway."""

    def __init__(self, kl_budget_nats: float, *, trainer_expected: bool = True) -> None:
        self._kl_budget_nats = kl_budget_nats
        self._trainer_expected = trainer_expected
        self._status: StoreStatus | None = None
        self._up: float | None = None
        self._gate: dict[str, GateFigures | None] = {}

    async def refresh(self, store: Store) -> None:
        """Look once; a store that does not answer is told as such."""
        try:
            self._status, self._up = await self._look(store), 1.0
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

    async def _look(self, store: Store) -> StoreStatus:
        active = await store.policies.active()
        states = await store.database.read(version_states)
        if new := states.keys() - self._gate.keys():
            # evaluations are large and many: each is read once
            first = len(new) > 1
            found = await store.policies.all() if first else [await store.policies.get(*new)]
            self._gate.update((r.version, _gate_figures(r)) for r in found if r is not None)
        by_number = sorted(states, key=lambda version: (len(version), version))
        return StoreStatus(
            run=await store.training.latest(),
            states={version: states[version] for version in by_number},
            gate={v: gate for v in by_number if (gate := self._gate.get(v)) is not None},
            active=active,
            served=await store.database.read(partial(served_kl, version=active)),
        )

    def collect(self) -> Iterable[Metric]:
        """Every family, also those of which nothing is known."""
        status = self._status
        yield _gauge("store_up", "1 if the store answered the last look.", self._up)
        yield _gauge("kl_budget_nats", "The gate's KL budget per answer.", self._kl_budget_nats)
        yield _gauge(
            "training_expected",
            "1 if a trainer belongs to the deployment.",
            float(self._trainer_expected),
        )
        yield from _of_the_run(None if status is None else status.run)
        yield from _of_the_gate(status)
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


def _gate_figures(record: PolicyRecord) -> GateFigures | None:
    gate: Mapping[str, Any] | None = record.evaluation.get("gate")
    if gate is None:
        return None
    checks: Sequence[Mapping[str, Any]] = gate.get("checks", ())
    return GateFigures(
        passed=bool(gate["passed"]),
        failed_checks=tuple(str(check["name"]) for check in checks if not check["passed"]),
        reward=_number(record.evaluation.get("reward_mean")),
        reward_gain=_number(gate.get("reward_gain")),
        kl_nats=_number(record.evaluation.get("kl_nats")),
    )


def _of_the_gate(status: StoreStatus | None) -> Iterator[Metric]:
    verdict = CounterMetricFamily(
        "bond_gate_verdicts", "Challengers that the gate judged.", labels=("verdict",)
    )
    failures = CounterMetricFamily(
        "bond_gate_failed_checks", "Checks of the gate that failed.", labels=("check",)
    )
    states = _labelled("policy_versions", "Versions by state, without the reference.", "state")
    judged: Mapping[str, GateFigures] = {} if status is None else status.gate
    if status is not None:
        passed = sum(gate.passed for gate in judged.values())
        verdict.add_metric(("passed",), float(passed))
        verdict.add_metric(("refused",), float(len(judged) - passed))
        failed = Counter(name for gate in judged.values() for name in gate.failed_checks)
        for name, count in sorted(failed.items()):
            failures.add_metric((name,), float(count))
        held = Counter(status.states.values())
        for policy_state in PolicyState:
            states.add_metric((policy_state.value,), float(held[policy_state]))
    newest = list(judged.items())[-NEWEST_VERSIONS:]
    return iter(
        (
            verdict,
            failures,
            states,
            _of_versions(
                "gate_reward", "Mean reward at the gate.", ((v, g.reward) for v, g in newest)
            ),
            _of_versions(
                "gate_reward_gain",
                "Mean reward over the incumbent's at the gate.",
                ((v, g.reward_gain) for v, g in newest),
            ),
            _of_versions(
                "gate_kl_nats",
                "KL to the reference at the gate, per answer.",
                ((v, g.kl_nats) for v, g in newest),
            ),
        )
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
    name: str, text: str, values: Iterable[tuple[str, float | None]]
) -> GaugeMetricFamily:
    family = _labelled(name, text, "version")
    for version, value in values:
        if value is not None:
            family.add_metric((version,), value)
    return family


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in sorted(metrics.items()):
        if (number := _number(value)) is not None:
            yield name, number


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
