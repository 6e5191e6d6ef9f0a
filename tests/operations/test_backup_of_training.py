"""A trainer goes on from a restored backup: its checkpoint, its claims, the version to beat."""

from pathlib import Path

from tiny_training import config_of, prompts_file

from bond_core.adapters import adapter_path, read_manifest
from bond_core.backups import restore_backup, take_backup
from bond_core.store import open_store
from bond_core.types import PolicyState
from bond_trainer import run_training


async def test_a_restored_trainer_goes_on_at_its_checkpoint(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    evaluation = {"every_steps": 8, "num_prompts": 16, "min_prompts": 8}
    config = config_of(tmp_path, tiny_policy_path, evaluation=evaluation)
    prompts = prompts_file(tmp_path)
    await run_training(config, prompts_file=prompts, max_steps=8)
    description = await take_backup(config, tmp_path / "backup")
    assert (description.versions, description.checkpoint) == (["v0001"], "step-000000008")
    config.data_dir.rename(tmp_path / "lost")

    elsewhere = config.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    await restore_backup(elsewhere, tmp_path / "backup")
    run_id = (tmp_path / "lost" / "checkpoints" / "run_id").read_text().strip()
    await run_training(elsewhere, prompts_file=prompts, max_steps=16)

    store = await open_store(elsewhere.store_url)
    first, second = (await store.policies.all())[1:]
    run = await store.training.latest()
    await store.close()
    assert first.state is PolicyState.CHALLENGER, first.reason
    assert (second.version, second.step, second.parent) == ("v0002", 16, "v0001")
    assert read_manifest(adapter_path(elsewhere.adapters_dir, "v0002")).parent == "v0001"
    assert run is not None
    assert (run.run_id, run.step) == (run_id, 16)
