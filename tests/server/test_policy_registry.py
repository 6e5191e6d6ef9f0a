"""Which versions an engine holds: bounded, never the active one, never one in use."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from published_adapters import publish
from running_gateway import MakeConfig

from bond_core.config import BondConfig
from bond_core.engines import Engine, build_engine
from bond_core.errors import AdapterError, ConfigError, EngineUnavailableError, UnknownModelError
from bond_core.store import Store, open_store
from bond_server.metrics import Metrics
from bond_server.services.policies import PolicyRegistry

VERSIONS = ["v0001", "v0002", "v0003", "v0004", "v0005"]


@pytest.fixture
def config(make_config: MakeConfig) -> BondConfig:
    return make_config()


@pytest.fixture
async def engine(config: BondConfig) -> AsyncGenerator[Engine]:
    engine = build_engine(config.engine, config.model)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def store(config: BondConfig) -> AsyncGenerator[Store]:
    store = await open_store(config.store_url)
    yield store
    await store.close()


@pytest.fixture
async def published(config: BondConfig) -> list[Path]:
    return [await publish(config, version) for version in VERSIONS]


def registry(store: Store, engine: Engine, config: BondConfig, residents: int) -> PolicyRegistry:
    return PolicyRegistry(store.policies, engine, config.adapters_dir, residents, Metrics())


async def test_the_oldest_spare_version_goes_first(
    store: Store, engine: Engine, config: BondConfig, published: list[Path]
) -> None:
    versions = registry(store, engine, config, 3)
    for version in VERSIONS[:4]:
        await versions.load(version)
        versions.switch(version)
    assert (versions.active, versions.previous) == ("v0004", "v0003")
    assert await engine.loaded_versions() == ["v0000", "v0002", "v0003", "v0004"]
    assert not versions.is_loaded("v0001")


async def test_the_previous_version_outlives_an_older_pinned_one(
    store: Store, engine: Engine, config: BondConfig, published: list[Path]
) -> None:
    versions = registry(store, engine, config, 3)
    for version in ("v0003", "v0004"):
        await versions.load(version)
        versions.switch(version)
    await versions.load("v0001")
    await versions.load("v0002")
    assert sorted(await engine.loaded_versions()) == ["v0000", "v0002", "v0003", "v0004"]


async def test_with_two_places_the_previous_version_makes_room(
    store: Store, engine: Engine, config: BondConfig, published: list[Path]
) -> None:
    versions = registry(store, engine, config, 2)
    for version in VERSIONS[:3]:
        await versions.load(version)
        versions.switch(version)
    assert await engine.loaded_versions() == ["v0000", "v0002", "v0003"]


async def test_a_version_in_use_is_not_dropped(
    store: Store, engine: Engine, config: BondConfig, published: list[Path]
) -> None:
    versions = registry(store, engine, config, 2)
    await versions.load("v0001")
    versions.switch("v0001")
    await versions.load("v0002")
    async with versions.using("v0002"), versions.using("v0002"):
        with pytest.raises(EngineUnavailableError, match="all are in use"):
            await versions.load("v0003")
        assert versions.is_loaded("v0002")
    await versions.load("v0003")
    assert await engine.loaded_versions() == ["v0000", "v0001", "v0003"]


async def test_using_a_dropped_version_loads_it_again(
    store: Store, engine: Engine, config: BondConfig, published: list[Path]
) -> None:
    versions = registry(store, engine, config, 2)
    for version in ("v0001", "v0002", "v0003"):
        await versions.load(version)
        versions.switch(version)
    assert not versions.is_loaded("v0001")
    async with versions.using("v0001"):
        assert versions.is_loaded("v0001")


async def test_a_caller_that_goes_away_while_room_is_made_leaves_no_place_taken(
    store: Store,
    engine: Engine,
    config: BondConfig,
    published: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Servers may take a while to drop a version, and clients do not wait."""
    versions = registry(store, engine, config, 2)
    for version in VERSIONS[:2]:
        await versions.load(version)
        versions.switch(version)
    asked, go_on, drop = asyncio.Event(), asyncio.Event(), engine.drop_adapter

    async def slow(version: str) -> None:
        asked.set()
        await go_on.wait()
        await drop(version)

    monkeypatch.setattr(engine, "drop_adapter", slow)
    loading = asyncio.create_task(versions.load("v0003"))
    await asked.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    go_on.set()
    await versions.load("v0004")
    assert await engine.loaded_versions() == ["v0000", "v0002", "v0004"]


async def test_a_load_that_fails_leaves_nothing_behind(
    store: Store, engine: Engine, config: BondConfig, published: list[Path]
) -> None:
    versions = registry(store, engine, config, 3)
    published[0].rename(config.adapters_dir / "v0009")
    with pytest.raises(AdapterError, match="it was moved"):
        await versions.load("v0009")
    assert await engine.loaded_versions() == ["v0000"]


async def test_one_place_is_not_enough(store: Store, engine: Engine, config: BondConfig) -> None:
    with pytest.raises(ConfigError, match=r"engine\.max_adapters"):
        registry(store, engine, config, 1)


async def test_an_unknown_version_is_told_with_what_exists(
    store: Store, engine: Engine, config: BondConfig
) -> None:
    with pytest.raises(UnknownModelError, match="versions served: none"):
        await registry(store, engine, config, 3).require("v0042")
