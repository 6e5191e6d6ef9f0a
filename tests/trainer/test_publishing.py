"""Publishing to servers: new names each time, all or nothing, bounded age, and waiting."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from enumerable_model import fresh_pair
from safetensors.torch import load_file
from tiny_training import config_of

from bond_core.adapters import WEIGHTS_FILE
from bond_core.config import BondConfig, FakeEngineConfig, ModelConfig, VllmEngineConfig
from bond_core.engines.base import Check
from bond_core.engines.fake import FakeEngine
from bond_core.errors import AdapterError, ConfigError, EngineUnavailableError, ScoringError
from bond_core.store import Store, TrainingRecord, open_store
from bond_core.types import Message, SamplingParams
from bond_trainer.lora import ANCHOR, POLICY, LoraPair
from bond_trainer.opened_rollouts import are_served, published_names
from bond_trainer.patience import MAX_PUBLICATION_FAILURES, Patience, StoppedWaitingError
from bond_trainer.progress import Progress
from bond_trainer.publication import Publication
from bond_trainer.served_publishing import PublicationError, ServedPublisher

NAMES = (POLICY, ANCHOR)


class Servers(FakeEngine):
    """Servers that note what they are given, and may refuse it."""

    def __init__(self) -> None:
        super().__init__(FakeEngineConfig(), ModelConfig(path=Path("fake")))
        self.given: dict[str, Path] = {}
        self.refused = ""
        self.most_loaded = 0

    async def load_adapter(self, version: str, path: Path, check: Check | None = None) -> None:
        if self.refused and version.startswith(self.refused):
            raise AdapterError("no room")
        await super().load_adapter(version, path, check)
        assert version not in self.given
        self.given[version] = path
        self.most_loaded = max(self.most_loaded, len(await self.loaded_versions()) - 1)


@pytest.fixture
async def servers() -> Servers:
    servers = Servers()
    await servers.start()
    return servers


@pytest.fixture
def pair() -> LoraPair:
    return fresh_pair()


async def test_each_publication_has_names_and_folders_of_its_own(
    servers: Servers, pair: LoraPair, tmp_path: Path
) -> None:
    publisher = ServedPublisher(servers, pair, NAMES, tmp_path)
    seen: list[str] = []
    for scale in (0.1, 0.2, 0.3):
        pair.factors(POLICY)[next(iter(pair.factors(POLICY)))].data.fill_(scale)
        await publisher.publish()
        behind = publisher.engine.behind()
        assert set(behind) == set(NAMES)
        assert set(await servers.loaded_versions()) == {"v0000", *behind.values()}
        seen += behind.values()
        for name in NAMES:
            tensors = load_file(servers.given[behind[name]] / WEIGHTS_FILE)
            assert tensors.keys() == pair.tensors(name).keys()
            assert all(t.equal(tensors[key]) for key, t in pair.tensors(name).items())
        assert len(list((tmp_path / ".rollouts").glob("*"))) == 1
    assert len(set(seen)) == 6
    assert servers.most_loaded == 2 * len(NAMES)
    await publisher.close()
    assert await servers.loaded_versions() == ["v0000"]
    assert not list((tmp_path / ".rollouts").glob("*"))


async def test_the_names_answer_for_what_is_behind_them(
    servers: Servers, pair: LoraPair, tmp_path: Path
) -> None:
    publisher = ServedPublisher(servers, pair, NAMES, tmp_path)
    await publisher.publish()
    engine, prompt, params = publisher.engine, [Message("user", "hello")], SamplingParams()
    behind = engine.behind()
    assert await engine.loaded_versions() == ["v0000", *NAMES]
    for name in NAMES:
        assert await engine.generate(name, prompt, params, 2) == await servers.generate(
            behind[name], prompt, params, 2
        )
        tokens = await engine.token_logprobs(name, [1, 2], [[3, 4]])
        assert tokens == await servers.token_logprobs(behind[name], [1, 2], [[3, 4]])
        streamed = [piece async for piece in engine.stream(name, prompt, params)]
        assert streamed == [p async for p in servers.stream(behind[name], prompt, params)]


@pytest.mark.parametrize("refused", [POLICY, ANCHOR])
async def test_a_publication_that_fails_leaves_the_one_before(
    servers: Servers, pair: LoraPair, tmp_path: Path, refused: str
) -> None:
    publisher = ServedPublisher(servers, pair, NAMES, tmp_path)
    await publisher.publish()
    before, loaded = publisher.engine.behind(), await servers.loaded_versions()
    servers.refused = refused
    with pytest.raises(PublicationError, match="were not published: no room"):
        await publisher.publish()
    assert publisher.engine.behind() == before
    assert await servers.loaded_versions() == loaded
    assert len(list((tmp_path / ".rollouts").glob("*"))) == 1
    servers.refused = ""
    await publisher.publish()
    assert not set(publisher.engine.behind().values()) & set(before.values())


async def test_incumbents_make_room(servers: Servers, pair: LoraPair, tmp_path: Path) -> None:
    publisher = ServedPublisher(servers, pair, NAMES, tmp_path)
    await publisher.publish()
    pair.save(POLICY, tmp_path / "v0001")
    await publisher.engine.load_adapter("v0001", tmp_path / "v0001")
    assert await publisher.engine.loaded_versions() == ["v0000", "v0001", *NAMES]
    await publisher.publish()
    assert await publisher.engine.loaded_versions() == ["v0000", *NAMES]
    assert servers.most_loaded == 4


async def test_what_another_life_left_is_unloaded_and_deleted(
    servers: Servers, pair: LoraPair, tmp_path: Path
) -> None:
    await ServedPublisher(servers, pair, NAMES, tmp_path).publish()
    left = list((tmp_path / ".rollouts").glob("*/*"))
    (tmp_path / ".rollouts" / "torn" / POLICY).mkdir(parents=True)
    fresh = Servers()  # servers know the names, but the engine of a new process does not
    await fresh.start()
    await ServedPublisher(fresh, pair, NAMES, tmp_path).open()
    assert set(fresh.given.values()) == set(left)
    assert await fresh.loaded_versions() == ["v0000"]
    assert not list((tmp_path / ".rollouts").glob("*"))


class Published:
    """A publisher that counts, or fails with what is in `failures`."""

    def __init__(self, *, served: bool = True) -> None:
        self.served = served
        self.count = 0
        self.failures: list[Exception] = []

    async def publish(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.count += 1


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await open_store(f"sqlite:///{tmp_path / 'bond.db'}")
    yield store
    await store.close()


def publication(
    store: Store, publisher: Published, seen: list[TrainingRecord], **patience: Any
) -> Publication:
    progress = Progress(store, "run", seen.append, state="training")
    return Publication(
        publisher, progress, asyncio.Event(), Patience(**{"max_pause_s": 60.0, **patience}), 0.001
    )


@pytest.mark.parametrize(
    ("served", "max_staleness", "expected"),
    [(True, 0, 9), (True, 3, 3), (True, 100, 1), (False, 3, 9)],
)
async def test_it_is_published_before_it_is_too_old(
    store: Store, served: bool, max_staleness: int, expected: int
) -> None:
    publisher = Published(served=served)
    published = publication(store, publisher, [])
    for step in range(9):
        await published.renew(step, max_staleness)
        assert published.staleness(step) <= (max_staleness if served else 0)
    assert publisher.count == expected
    await published.renew(8)
    assert published.staleness(8) == 0
    count = publisher.count
    await published.renew(8)
    assert publisher.count == count
    published.at = None  # weights that changed without a step
    await published.renew(8, max_staleness)
    assert publisher.count == count + 1


async def test_the_run_waits_for_servers_and_says_so(store: Store) -> None:
    publisher, seen = Published(), list[TrainingRecord]()
    published = publication(store, publisher, seen)
    published.progress.error = "something else"
    away = EngineUnavailableError("nobody is there")
    publisher.failures = [away, ExceptionGroup("tasks", [away]), PublicationError("no disk")]
    await published.renew(0)
    assert publisher.count == 1
    assert [record.state for record in seen] == ["waiting", "training"]
    assert seen[0].error == "waiting for servers: nobody is there"
    assert seen[-1].error == "something else"


async def test_another_error_ends_the_run_at_once(store: Store) -> None:
    publisher = Published()
    published = publication(store, publisher, [])
    for error in (ScoringError("no"), ExceptionGroup("tasks", [ScoringError("no")])):
        publisher.failures = [error]
        with pytest.raises(type(error)):
            await published.renew(0)
    publisher.served = False
    publisher.failures = [EngineUnavailableError("the engine of this process ended")]
    with pytest.raises(EngineUnavailableError, match="of this process"):
        await published.renew(0)


async def test_a_stopped_run_does_not_wait(store: Store) -> None:
    publisher = Published()
    published = publication(store, publisher, [])
    published.stop.set()
    publisher.failures = [EngineUnavailableError("away")]
    with pytest.raises(StoppedWaitingError):
        await published.renew(0)


async def test_waiting_has_an_end(store: Store) -> None:
    now = iter(range(0, 1000, 10))
    publisher = Published()
    published = publication(store, publisher, [], max_pause_s=25.0, clock=lambda: next(now))
    publisher.failures = [EngineUnavailableError("away")] * 10
    with pytest.raises(EngineUnavailableError, match=r"waited 25 s .*: away\. Once it is well"):
        await published.renew(0)
    assert len(publisher.failures) == 10 - 3  # at 0, 10 and 20 s of waiting, and not at 30
    published = publication(store, publisher, [])
    publisher.failures = [PublicationError("rank 64 is over 16")] * MAX_PUBLICATION_FAILURES
    with pytest.raises(PublicationError, match="rank 64"):
        await published.renew(0)
    assert publisher.failures == []


def test_where_rollouts_come_from(tmp_path: Path) -> None:
    def config(kind: str, **rollouts: Any) -> BondConfig:
        urls = {"urls": ["http://host:8000"]} if kind == "vllm" else {}
        return config_of(tmp_path, tmp_path, {"type": kind, **urls}, rollouts=rollouts)

    file = tmp_path / "prompts.jsonl"
    assert are_served(config("vllm"), None)
    assert not are_served(config("vllm"), file)
    assert are_served(config("vllm", engine="served"), file)
    assert not are_served(config("vllm", engine="own"), None)
    assert not are_served(config("local"), None)
    with pytest.raises(ConfigError, match=r"engine\.type is local: set engine\.type to vllm"):
        config("local", engine="served")


def test_the_anchor_is_published_where_it_is_sampled_from(tmp_path: Path) -> None:
    assert published_names(config_of(tmp_path, tmp_path)) == NAMES
    rloo = config_of(tmp_path, tmp_path, objective={"type": "rloo"})
    assert published_names(rloo) == (POLICY,)
    assert VllmEngineConfig().max_adapters >= 2 * len(NAMES)
