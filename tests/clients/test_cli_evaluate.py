"""`bond eval` on the tiny model, end to end, and what it refuses."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from tiny_training import REWARD, config_of, prompts_file
from typer.testing import CliRunner

from bond_cli.main import app
from bond_cli.resolved import write_resolved
from bond_trainer import run_training


@pytest.fixture(scope="module")
def run_dir(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with versions v0001 and v0002."""
    folder = tmp_path_factory.mktemp("run")
    config = config_of(
        folder,
        tiny_policy_path,
        evaluation={"every_steps": 2, "num_prompts": 8, "min_prompts": 8},
    )
    asyncio.run(run_training(config, prompts_file=prompts_file(folder), max_steps=4))
    write_resolved(config)
    return config.data_dir


def bond_eval(*arguments: object) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "80"})
    return ran.exit_code, ran.output


def test_a_version_is_sampled_compared_and_drawn(run_dir: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, 300)
    code, output = bond_eval(
        "v0002", "v0001", "--data-dir", run_dir, "--prompts", prompts, "--num-prompts", 6,
        "--reference-samples", 8, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, output
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert list(found["policies"]) == ["reference", "v0002", "v0001"]
    assert list(found["best_of_n"]) == [str(n) for n in range(1, 9)]
    assert found["policies"]["v0002"]["samples"] == 6 * 4
    assert found["policies"]["v0002"]["kl_nats"] > 0
    assert found["against"]["v0002"]["best_of_8"]["win_rate"] <= 1
    # a byte-level model of random weights is close to uniform over its 300 tokens
    assert 4 < found["policies"]["reference"]["entropy_per_token"] < 5.71
    assert (tmp_path / "out" / "eval.png").stat().st_size > 20_000
    assert f"{found['policies']['v0002']['reward_mean']:.3f}" in output
    assert "v0002 against Best-of-8" in output
    assert "…" not in output


def test_the_same_samples_again(run_dir: Path, tmp_path: Path) -> None:
    """Deterministic by its seed, and a PEFT folder with no manifest is evaluated like a version."""
    foreign = tmp_path / "from-elsewhere"
    foreign.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (foreign / name).write_bytes((run_dir / "adapters" / "v0002" / name).read_bytes())
    code, output = bond_eval(
        "v0002", foreign, "--data-dir", run_dir, "--prompts", prompts_file(tmp_path, 300),
        "--num-prompts", 4, "--reference-samples", 8, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, output
    found = json.loads((tmp_path / "eval.json").read_text())
    own, same = found["policies"]["v0002"], found["policies"]["from-elsewhere"]
    assert own == same
    assert found["against"]["v0002"]["from-elsewhere"]["reward_difference"] == 0


def test_without_a_data_folder(tiny_policy_path: Path, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARD)
    code, output = bond_eval(
        run_dir / "adapters" / "v0001", "--model", tiny_policy_path,
        "--reward-model", f"{tmp_path / 'rewards.py'}:reward",
        "--prompts", prompts_file(tmp_path, 300), "--num-prompts", 3, "--best-of", 2,
        "--reference-samples", 4, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert "v0001 against Best-of-2" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v0042"], "v0042 is neither a version in"),
        (["--best-of", "32"], "--reference-samples 32 or more"),
        (["v0001", "v0001"], "two adapters are called v0001"),
    ],
)
def test_what_is_refused(run_dir: Path, arguments: list[str], message: str) -> None:
    code, output = bond_eval(*arguments, "--data-dir", run_dir)
    assert code != 0
    assert message in " ".join(output.split())


def test_a_data_folder_without_versions(tiny_policy_path: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    write_resolved(config)
    code, output = bond_eval("--data-dir", config.data_dir)
    assert code != 0
    assert "there is no version in" in " ".join(output.split())


def test_an_altered_version_is_refused(run_dir: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run_dir / "adapters" / "v0001", tmp_path / "v0001")
    with (broken / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    code, output = bond_eval(
        broken, "--data-dir", run_dir, "--prompts", prompts_file(tmp_path), "--out", tmp_path
    )
    assert code != 0
    assert "checksum" in output


def test_a_prompt_too_long_is_left_out(run_dir: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, 5)
    with prompts.open("a") as file:
        file.write("\n" + json.dumps({"prompt": "far too long " * 200}) + "\n")
    code, output = bond_eval(
        "v0001", "--data-dir", run_dir, "--prompts", prompts, "--reference-samples", 8,
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert json.loads((tmp_path / "eval.json").read_text())["prompts"] == 5
