"""What gateways tell out of the store: the trainer, the gate, the KL of what is served."""

import math

import pytest
from databases import OpenStoreAt
from prometheus_client import CollectorRegistry
from running_gateway import MakeConfig, Run, eventually
from store_contents import a_run, refused, verdict
from stored import best_of_n, completion, policy

from bond_core.store import Annotation, Store
from bond_core.store.served_kl import ServedKL, served_kl
from bond_core.types import Arm
from bond_server.store_metrics import NEWEST_VERSIONS, StoreMetrics


@pytest.fixture
async def store(database_url: str, open_store_at: OpenStoreAt) -> Store:
    return await open_store_at(database_url)


class Told:
    """What a collector tells of a store."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = StoreMetrics(kl_budget_nats=4.0)
        self.registry.register(self.metrics)

    def value(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"bond_{metric}", labels)

    def samples(self) -> int:
        return sum(len(family.samples) for family in self.registry.collect())


async def distilled(store: Store, id: str, ratio: float | None, **changes: object) -> None:
    await store.completions.record(
        completion(id, **{"arm": Arm.DISTILLED, "version": "v0001", **changes})
    )
    if ratio is not None:
        await store.completions.annotate([Annotation(id=id, log_ratio=ratio)])


async def activate(store: Store, version: str) -> None:
    await store.policies.insert(policy(version, evaluation=verdict()))
    await store.policies.activate(version, "passed")


async def test_before_the_first_look_only_what_the_configuration_says_is_told() -> None:
    told = Told()
    assert told.value("kl_budget_nats") == 4.0
    assert told.value("training_expected") == 1.0
    assert told.samples() == 2


async def test_an_empty_store(store: Store) -> None:
    told = Told()
    await told.metrics.refresh(store)
    assert told.value("store_up") == 1.0
    assert told.value("training_step") is None
    assert told.value("gate_verdicts_total", verdict="passed") == 0.0
    assert told.value("served_kl_nats", version="v0000") is None


async def test_the_trainer(store: Store) -> None:
    told = Told()
    await store.training.report(a_run("evaluating", step=40, heartbeat_at=1234.5))
    await told.metrics.refresh(store)
    assert told.value("training_step") == 40.0
    assert told.value("training_heartbeat_timestamp_seconds") == 1234.5
    assert told.value("training_state", state="evaluating") == 1.0
    assert told.value("training_state", state="failed") == 0.0
    assert told.value("training_rows", outcome="too_long") == 10.0
    assert told.value("training_metric", name="train/loss") == 2.0
    assert told.value("training_metric", name="eval/version") is None


async def test_the_gate(store: Store) -> None:
    told = Told()
    await activate(store, "v0001")
    await store.policies.insert(refused("v0002", "kl", reward=3.0, kl=5.0))
    await store.policies.insert(refused("v0003", "kl", "length"))
    await told.metrics.refresh(store)
    assert told.value("gate_verdicts_total", verdict="passed") == 1.0
    assert told.value("gate_verdicts_total", verdict="refused") == 2.0
    assert told.value("gate_failed_checks_total", check="kl") == 2.0
    assert told.value("gate_failed_checks_total", check="length") == 1.0
    assert told.value("gate_failed_checks_total", check="reward") is None
    assert told.value("policy_versions", state="active") == 1.0
    assert told.value("policy_versions", state="rejected") == 2.0
    assert told.value("policy_versions", state="retired") == 0.0
    assert told.value("gate_reward", version="v0002") == 3.0
    assert told.value("gate_reward_gain", version="v0002") == 2.0
    assert told.value("gate_kl_nats", version="v0002") == 5.0


async def test_a_verdict_that_comes_between_two_looks(store: Store) -> None:
    told = Told()
    for number in (9999, 10000):
        await store.policies.insert(refused(f"v{number}", "kl"))
        await told.metrics.refresh(store)
    assert told.value("gate_verdicts_total", verdict="refused") == 2.0
    await store.policies.insert(policy("v10001"))  # made by hand: the gate said nothing of it
    await told.metrics.refresh(store)
    assert told.value("gate_verdicts_total", verdict="refused") == 2.0
    assert told.value("policy_versions", state="challenger") == 1.0


async def test_old_versions_are_no_series(store: Store) -> None:
    told = Told()
    for number in range(NEWEST_VERSIONS + 2):
        await store.policies.insert(refused(f"v{number + 1:04d}", "reward"))
    await told.metrics.refresh(store)
    assert told.value("gate_kl_nats", version="v0002") is None
    assert told.value("gate_kl_nats", version="v0003") == 0.75
    assert told.value("gate_verdicts_total", verdict="refused") == NEWEST_VERSIONS + 2


async def test_the_kl_of_what_is_served(store: Store) -> None:
    told = Told()
    await activate(store, "v0001")
    for number, ratio in enumerate((1.0, 2.0, 6.0)):
        await distilled(store, f"d{number}", ratio)
    await distilled(store, "not measured", None)
    await distilled(store, "of another version", 50.0, version="v0002")
    await store.completions.record(best_of_n("bon", 2))
    await told.metrics.refresh(store)
    # mean 3, variance ((-2)^2 + (-1)^2 + 3^2) / 2 = 7 of one, 7/3 of the mean
    assert told.value("served_kl_nats", version="v0001") == 3.0
    error = told.value("served_kl_standard_error_nats", version="v0001")
    assert error is not None
    assert math.isclose(error, math.sqrt(7 / 3))
    assert told.value("served_kl_answers", version="v0001") == 3.0


async def test_only_the_newest_rows_count(store: Store) -> None:
    for number, ratio in enumerate((100.0, 1.0, 2.0)):
        await distilled(store, f"d{number}", ratio)
    newest = await store.database.read(lambda c: served_kl(c, "v0001", newest_rows=2))
    assert newest == ServedKL(mean=1.5, standard_error=0.5, answers=2)
    assert await store.database.read(lambda c: served_kl(c, "v0001", newest_rows=1)) is None


async def test_a_store_that_is_away_is_told_and_nothing_else(store: Store) -> None:
    told = Told()
    await store.training.report(a_run("training", step=1))
    await told.metrics.refresh(store)
    assert told.value("training_step") == 1.0
    await store.close()
    await told.metrics.refresh(store)
    assert told.value("store_up") == 0.0
    assert told.value("training_step") is None
    assert told.value("training_expected") == 1.0  # an alert must not take it for a trainer gone
    assert told.samples() == 3


async def test_a_gateway_tells_it(run: Run, make_config: MakeConfig) -> None:
    config = make_config(trainer={"expected": False, "gate": {"kl_budget_nats": 2.5}})
    async with run(config) as running:

        async def looked() -> bool:
            return running.metric("bond_store_up") == 1.0

        await eventually(looked)
        text = (await running.client.get("/metrics")).text
    assert "bond_kl_budget_nats 2.5" in text
    assert "bond_training_expected 0.0" in text
    assert 'bond_policy_versions{state="active"} 0.0' in text
