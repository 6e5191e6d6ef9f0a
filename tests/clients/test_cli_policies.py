"""`bond policies`: versions on disk, listed and exported without a gateway."""

from pathlib import Path

import pytest
from tiny_training import config_of, prompts_file
from typer.testing import CliRunner

from bond_cli.main import app
from bond_cli.resolved import write_resolved
from bond_trainer import run_training


@pytest.fixture
async def data_dir(tiny_policy_path: Path, tmp_path: Path) -> Path:
    config = config_of(
        tmp_path,
        tiny_policy_path,
        evaluation={"every_steps": 2, "num_prompts": 8, "min_prompts": 8},
    )
    await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=2)
    write_resolved(config)
    return config.data_dir


def test_list_and_export(data_dir: Path, tmp_path: Path):
    listed = CliRunner().invoke(app, ["policies", "list", "--data-dir", str(data_dir)])
    assert listed.exit_code == 0, listed.output
    assert "v0001" in listed.output
    arguments = ["policies", "export", "--data-dir", str(data_dir), "--to"]
    for name, extra in (("peft", []), ("merged", ["--merge"])):
        ran = CliRunner().invoke(app, [*arguments, str(tmp_path / name), "v0001", *extra])
        assert ran.exit_code == 0, ran.output
        assert (tmp_path / name / "README.md").is_file()
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "merged" / "config.json").is_file()
    again = CliRunner().invoke(app, [*arguments, str(tmp_path / "peft"), "v0001"])
    assert again.exit_code != 0
    assert "not an empty folder" in again.output
    outside = CliRunner().invoke(app, [*arguments, str(tmp_path / "x"), "../adapters/v0001"])
    assert "is not a policy version" in outside.output
    unknown = CliRunner().invoke(app, [*arguments, str(tmp_path / "x"), "v0042"])
    assert "no version v0042" in unknown.output
