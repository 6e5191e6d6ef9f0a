"""Other base weights at the same path: nothing made for the old ones is taken up."""

import asyncio
import shutil
from pathlib import Path

import pytest
from tiny_models import make_policy
from tiny_training import config_of, prompts_file

from bond_core.adapters import read_manifest
from bond_core.errors import AdapterError, ConfigError
from bond_core.fingerprints import model_digest
from bond_core.store import PolicyRecord
from bond_core.types import PolicyState
from bond_trainer.checkpoints import Snapshot
from bond_trainer.lora import ANCHOR, POLICY
from bond_trainer.opening import Parts, open_parts


async def proposal(parts: Parts) -> PolicyRecord:
    for name in (POLICY, ANCHOR):
        parts.engine.publish(name, parts.learner.pair.merged_weights(name))
    held_out = await parts.held_out.resolve(parts.engine, parts.scorers)
    assert held_out is not None
    return await parts.proposer.propose(1, held_out, {})


async def test_a_checkpoint_of_other_base_weights_is_refused(tmp_path: Path) -> None:
    model = make_policy(tmp_path / "model", seed=0)
    config, prompts = config_of(tmp_path, model), prompts_file(tmp_path)
    async with open_parts(config, prompts) as parts:
        parts.checkpoints.save(Snapshot(1, parts.settings, {}, {}))
    async with open_parts(config, prompts) as parts:
        assert parts.checkpoints.latest(parts.settings) is not None
    make_policy(model, seed=1)
    async with open_parts(config, prompts) as parts:
        with pytest.raises(ConfigError):
            parts.checkpoints.latest(parts.settings)


async def test_nothing_is_built_on_a_version_of_another_base(tmp_path: Path) -> None:
    model = make_policy(tmp_path / "model", seed=0)
    config, prompts = config_of(tmp_path, model), prompts_file(tmp_path)
    async with open_parts(config, prompts) as parts:
        record = await proposal(parts)
        assert read_manifest(Path(record.path)).base_revision == model_digest(model)
        await insert_as_retired(parts, record)
        await parts.store.policies.activate("v0099", "test")
    async with open_parts(config, prompts):
        pass
    make_policy(model, seed=1)
    with pytest.raises(AdapterError, match=r"v0099 was made for another base .* fresh data_dir"):
        async with open_parts(config, prompts):
            pass


async def test_a_running_trainer_refuses_to_compare_with_it(tmp_path: Path) -> None:
    model = make_policy(tmp_path / "model", seed=0)
    config, prompts = config_of(tmp_path, model), prompts_file(tmp_path)
    async with open_parts(config, prompts) as parts:
        record = await proposal(parts)
        file = Path(record.path) / "manifest.json"
        text = file.read_text().replace(model_digest(model), "0" * 64)
        file.write_text(text)
        await insert_as_retired(parts, record)
        await parts.store.policies.activate("v0099", "test")
        with pytest.raises(AdapterError, match="v0099 was made for another base"):
            await proposal(parts)


async def insert_as_retired(parts: Parts, record: PolicyRecord) -> None:
    """The version's files under a name that may be made active, as the gate would have."""
    path = parts.config.adapters_dir / "v0099"
    await asyncio.to_thread(shutil.copytree, record.path, path)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{record.version}"', '"v0099"'))
    await parts.store.policies.insert(
        PolicyRecord(
            version="v0099",
            state=PolicyState.RETIRED,
            path=str(path),
            parent="v0000",
            step=1,
            created_at=1.0,
            updated_at=1.0,
            evaluation=record.evaluation,
        )
    )
