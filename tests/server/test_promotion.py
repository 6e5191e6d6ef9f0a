"""The controller: what passes the probe goes live, what is not what it says is refused."""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from published_adapters import challenger, publish
from running_gateway import (
    MODEL,
    MakeConfig,
    Run,
    Running,
    row_id,
    settled,
    until_active,
    until_state,
)

from bond_core.adapters import MANIFEST_FILE, WEIGHTS_FILE
from bond_core.config import BondConfig
from bond_core.engines import Check, build_engine
from bond_core.engines.fake import FakeEngine
from bond_core.errors import EngineUnavailableError
from bond_core.rewards import build_scorer
from bond_core.store import Store, open_store
from bond_core.types import PolicyState
from bond_server.metrics import Metrics
from bond_server.services.after_answer import AfterAnswer, Judges
from bond_server.services.controller import Controller
from bond_server.services.policies import PolicyRegistry


async def propose(running: Running, version: str, parent: str = "v0000") -> Path:
    path = await publish(running.gateway.config, version, parent=parent)
    await running.gateway.store.policies.insert(challenger(version, path, parent, reward_mean=1.5))
    return path


async def test_a_sound_challenger_goes_live(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        before = (await running.post("/v1/distilled")).json()
        await propose(running, "v0001")
        await until_active(running, "v0001")
        response = await running.post("/v1/distilled")
        body = response.json()
        await settled(running)
        record = await running.gateway.store.completions.get(row_id(body))
        assert await running.gateway.store.policies.active() == "v0001"
        assert running.metric("bond_policy_transitions_total", outcome="activated") == 1
        assert running.metric("bond_active_policy_version") == 1
        assert running.metric("bond_adapter_info", version="v0001", role="active") == 1
        assert running.metric("bond_adapter_info", version="v0000", role="previous") == 1
        listed = (await running.client.get("/v1/models")).json()["data"]
        policies = (await running.client.get("/v1/policies")).json()
        one = (await running.client.get("/v1/policies/v0001")).json()
        still = (await running.post("/v1/chat/completions", model=f"{MODEL}:distilled@v0")).json()
    assert before["bond"]["version"] == "v0000"
    assert response.headers["x-bond-adapter"] == "v0001"
    assert body["bond"]["note"] is None
    assert "x-bond-note" not in response.headers
    assert body["system_fingerprint"].endswith("-v0001")
    assert still["bond"]["version"] == "v0000"
    assert record is not None
    assert record.version == "v0001"
    assert f"{MODEL}:distilled@v0001" in [m["id"] for m in listed]
    assert [m["parent"] for m in listed if m["id"].endswith("v0001")] == [
        f"{MODEL}:distilled@v0000"
    ]
    assert policies["active"] == "v0001"
    assert [(p["version"], p["state"], p["active"]) for p in policies["data"]] == [
        ("v0000", "retired", False),
        ("v0001", "active", True),
    ]
    assert one["evaluation"] == {"reward_mean": 1.5}
    assert one["loaded"] is True
    assert one["reason"] == "loaded and probed"


async def test_the_log_ratio_of_a_promoted_version_is_measured(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        await propose(running, "v0001")
        await until_active(running, "v0001")
        body = (await running.post("/v1/distilled")).json()
        await settled(running)
        record = await running.gateway.store.completions.get(row_id(body))
        assert record is not None
        tokens = record.candidates[0].completion.token_ids
        engine = running.gateway.engine
        [ours] = await engine.token_logprobs("v0001", record.prompt_token_ids, [tokens])
        [theirs] = await engine.token_logprobs("v0000", record.prompt_token_ids, [tokens])
        assert running.metric("bond_log_ratio_nats_count") == 1
    assert record.log_ratio == pytest.approx(sum(ours) - sum(theirs), abs=1e-9)
    # the answer was sampled from the policy, so its recorded log-probability agrees
    assert sum(ours) == pytest.approx(record.candidates[0].completion.logprob, abs=1e-9)
    assert record.log_ratio != 0


def remove_manifest(path: Path) -> None:
    (path / MANIFEST_FILE).unlink()


def remove_weights(path: Path) -> None:
    (path / WEIGHTS_FILE).unlink()


def cut_weights(path: Path) -> None:
    (path / WEIGHTS_FILE).write_bytes((path / WEIGHTS_FILE).read_bytes()[:-1])


def remove_all(path: Path) -> None:
    shutil.rmtree(path)


def break_manifest(path: Path) -> None:
    (path / MANIFEST_FILE).write_text("{")


def drop_probe(path: Path) -> None:
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    (path / MANIFEST_FILE).write_text(json.dumps({**manifest, "probe": []}))


def claim_other_numbers(path: Path) -> None:
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    for case in manifest["probe"]:
        case["this"] -= 7.0
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))


def claim_to_be_its_parent(path: Path) -> None:
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    for case in manifest["probe"]:
        case["parent"] = case["this"]
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))


def change_tokenizer(path: Path) -> None:
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    (path / MANIFEST_FILE).write_text(json.dumps({**manifest, "tokenizer_sha256": "0" * 64}))


def change_base(path: Path) -> None:
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    (path / MANIFEST_FILE).write_text(json.dumps({**manifest, "base_revision": "0" * 64}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_manifest, "half written"),
        (remove_weights, "half written"),
        (cut_weights, "checksum"),
        (remove_all, "no adapter directory"),
        (break_manifest, "manifest.json"),
        (drop_probe, "no probe"),
        (claim_other_numbers, "nats per answer away from it"),
        (claim_to_be_its_parent, "indistinguishable"),
        (change_tokenizer, "another tokenizer"),
        (change_base, "another base model"),
    ],
)
async def test_what_is_not_what_it_says_is_refused_and_the_old_version_stays(
    run: Run,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    says: str,
) -> None:
    async with run(make_config()) as running:
        await propose(running, "v0001")
        await until_active(running, "v0001")
        path = await publish(running.gateway.config, "v0002", parent="v0001")
        damage(path)
        with caplog.at_level(logging.ERROR):
            await running.gateway.store.policies.insert(challenger("v0002", path, "v0001"))
            reason = await until_state(running, "v0002", PolicyState.REJECTED)
        assert (await running.post("/v1/distilled")).json()["bond"]["version"] == "v0001"
        assert await running.gateway.engine.loaded_versions() == ["v0000", "v0001"]
        assert running.metric("bond_policy_transitions_total", outcome="rejected") == 1
        pinned = await running.post("/v1/chat/completions", model=f"{MODEL}:distilled@v2")
        listed = (await running.client.get("/v1/models")).json()["data"]
    assert says in reason
    assert any("refused v0002" in record.message for record in caplog.records)
    assert pinned.status_code == 404
    assert says in pinned.json()["error"]["message"]
    assert not any("v0002" in m["id"] for m in listed)


async def test_a_challenger_waits_while_the_engine_is_down(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        engine = running.gateway.engine
        assert isinstance(engine, FakeEngine)
        engine.failure = EngineUnavailableError("the engine is away")
        await propose(running, "v0001")
        await asyncio.sleep(0.2)
        record = await running.gateway.store.policies.get("v0001")
        assert record is not None
        assert record.state is PolicyState.CHALLENGER
        engine.failure = None
        await until_active(running, "v0001")


async def test_a_restart_serves_the_active_version_from_its_first_answer(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config()
    async with run(config) as running:
        await propose(running, "v0001")
        await until_active(running, "v0001")
    async with run(config) as running:
        assert running.gateway.policies.active == "v0001"
        assert (await running.post("/v1/distilled")).json()["bond"]["version"] == "v0001"


@pytest.mark.parametrize(
    ("versions", "fallback"), [(["v0001"], "v0000"), (["v0001", "v0002"], "v0001")]
)
async def test_an_active_version_that_broke_is_rolled_back_at_start(
    run: Run, make_config: MakeConfig, versions: list[str], fallback: str
) -> None:
    config = make_config()
    async with run(config) as running:
        parent = "v0000"
        for version in versions:
            await propose(running, version, parent)
            await until_active(running, version)
            parent = version
    cut_weights(config.adapters_dir / versions[-1])
    async with run(config) as running:
        response = await running.post("/v1/distilled")
        broken = await running.gateway.store.policies.get(versions[-1])
        assert await running.gateway.store.policies.active() == fallback
        assert running.metric("bond_policy_transitions_total", outcome="rolled_back") == 1
        assert (await running.client.get("/readyz")).json()["active"] == fallback
    assert response.headers["x-bond-adapter"] == fallback
    assert broken is not None
    assert broken.state is PolicyState.ROLLED_BACK


async def test_a_retired_version_that_is_not_loaded_is_loaded_on_demand(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config()
    async with run(config) as running:
        await propose(running, "v0001")
        await until_active(running, "v0001")
        await propose(running, "v0002", "v0001")
        await until_active(running, "v0002")
    async with run(config) as running:
        assert not running.gateway.policies.is_loaded("v0001")
        body = (await running.post("/v1/chat/completions", model=f"{MODEL}:distilled@v1")).json()
        assert body["bond"]["version"] == "v0001"
        assert running.gateway.policies.is_loaded("v0001")
        assert running.gateway.policies.active == "v0002"


async def test_a_pinned_version_whose_directory_is_gone_is_a_404_with_the_reason(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config()
    async with run(config) as running:
        await propose(running, "v0001")
        await until_active(running, "v0001")
        await propose(running, "v0002", "v0001")
        await until_active(running, "v0002")
    shutil.rmtree(config.adapters_dir / "v0001")
    async with run(config) as running:
        response = await running.post("/v1/chat/completions", model=f"{MODEL}:distilled@v1")
    assert response.status_code == 404
    assert "no adapter directory" in response.json()["error"]["message"]


async def test_only_the_holder_of_the_lease_promotes_and_everyone_follows(
    make_config: MakeConfig,
) -> None:
    config = make_config()
    store = await open_store(config.store_url)
    first, its_policies = await controller_over(store, config)
    second, other_policies = await controller_over(store, config)
    path = await publish(config, "v0001")
    await first.tick()
    await store.policies.insert(challenger("v0001", path))
    await second.tick()
    assert (first.holds_lease, second.holds_lease) == (True, False)
    assert await store.policies.active() == "v0000"
    await first.tick()
    assert (its_policies.active, other_policies.active) == ("v0001", "v0000")
    await second.tick()
    assert other_policies.active == "v0001"
    await first.close()
    path = await publish(config, "v0002", parent="v0001")
    await store.policies.insert(challenger("v0002", path, "v0001"))
    await second.tick()
    assert (first.holds_lease, second.holds_lease) == (False, True)
    assert other_policies.active == "v0002"
    await store.close()


async def controller_over(store: Store, config: BondConfig) -> tuple[Controller, PolicyRegistry]:
    """What one of several gateways promotes and follows with."""
    engine, metrics = build_engine(config.engine, config.model), Metrics()
    await engine.start()
    registry = PolicyRegistry(store.policies, engine, config.adapters_dir, 4, metrics)
    judges = Judges(build_scorer(config.scorer))
    after_answer = AfterAnswer(store.completions, engine, registry, judges, metrics, 1.0)
    return Controller(store, registry, after_answer, metrics, 60.0), registry


async def test_a_challenger_that_breaks_the_load_does_not_hold_up_the_next(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config()) as running:
        engine = running.gateway.engine
        load = engine.load_adapter

        async def broken_for_one(version: str, path: Path, check: Check) -> None:
            if version == "v0001":
                raise KeyError("lora_alpha")
            await load(version, path, check)

        monkeypatch.setattr(engine, "load_adapter", broken_for_one)
        await propose(running, "v0001")
        await until_state(running, "v0001", PolicyState.REJECTED)
        await propose(running, "v0002")
        await until_active(running, "v0002")
        record = await running.gateway.store.policies.get("v0001")
    assert record is not None
    assert record.reason == "loading failed: KeyError: 'lora_alpha'"
