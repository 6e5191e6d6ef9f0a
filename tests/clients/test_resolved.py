"""What the children read: one file, absolute, and one supervisor at a time."""

import json
from pathlib import Path

import pytest

from bond_cli.claim import claimed
from bond_cli.failure import CommandError
from bond_cli.resolved import write_resolved
from bond_core.config import (
    ClassifierScorerConfig,
    FunctionScorerConfig,
    PoolingScorerConfig,
    load_config,
)


def test_a_relative_function_stays_findable_from_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bond.yaml").write_text(
        "model: {path: base}\n"
        "scorer: {type: function, function: 'rewards.py:score'}\n"
        "judge: {type: function, function: 'package.module:score'}\n"
        "data_dir: data\n"
    )
    path = write_resolved(load_config(Path("bond.yaml"), environ={}))
    values = json.loads(path.read_text())
    assert values["scorer"]["function"] == f"{tmp_path}/rewards.py:score"
    assert values["judge"]["function"] == "package.module:score"
    assert values["model"]["path"] == f"{tmp_path}/base"
    assert load_config(path, environ={}).scorer.function == f"{tmp_path}/rewards.py:score"
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_path_of_a_file_stays_findable_from_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/bond.yaml").write_text(
        "model: {path: base}\n"
        "scorer: {type: classifier, path: rm}\n"
        "gold: {type: function, function: 'gold.py:score'}\n"
        "data_dir: data\n"
        "store: {redact: 'redact.py:mask'}\n"
        "trainer:\n"
        "  evaluation: {gate_prompts: gate.jsonl, report_prompts: /report.jsonl}\n"
        "  gate: {suite: {function: 'suite.py:score', prompts: suite.jsonl}}\n"
        "  objective: {type: gkd, teacher: teacher}\n"
    )
    path = write_resolved(load_config(Path("sub/bond.yaml"), environ={}))
    assert path == tmp_path / "sub" / "data" / "resolved.json"
    monkeypatch.chdir("/")
    config, home = load_config(path, environ={}), tmp_path / "sub"
    assert (config.model.path, config.scorer) == (
        home / "base",
        ClassifierScorerConfig(path=home / "rm"),
    )
    assert config.gold == FunctionScorerConfig(function=f"{home}/gold.py:score")
    assert (config.data_dir, config.store.redact) == (home / "data", f"{home}/redact.py:mask")
    held_out = config.trainer.evaluation
    assert held_out.gate_prompts == home / "gate.jsonl"
    assert held_out.report_prompts == Path("/report.jsonl")
    suite = config.trainer.gate.suite
    assert suite is not None
    assert (suite.function, suite.prompts) == (f"{home}/suite.py:score", home / "suite.jsonl")
    assert config.trainer.objective.type == "gkd"
    assert config.trainer.objective.teacher == home / "teacher"


def test_a_pooling_scorer_reaches_the_children_with_its_key_and_an_absolute_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bond.yaml").write_text(
        "model: {path: base}\n"
        "scorer: {type: pooling, url: 'http://gpu-1:8001', path: reward, self_test: null}\n"
        "judge: {type: pooling, url: 'http://gpu-2:8001/v1/'}\n"
        "data_dir: data\n"
    )
    monkeypatch.setenv("BOND_JUDGE__API_KEY", "sk-secret")
    path = write_resolved(load_config(Path("bond.yaml")))
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("BOND_JUDGE__API_KEY")
    monkeypatch.chdir("/")
    config = load_config(path)
    assert config.scorer == PoolingScorerConfig(
        url="http://gpu-1:8001", path=tmp_path / "reward", self_test=None
    )
    assert config.judge == PoolingScorerConfig(url="http://gpu-2:8001", api_key="sk-secret")


def test_a_second_supervisor_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "data"),
        pytest.raises(CommandError, match="another `bond up`"),
        claimed(tmp_path / "data"),
    ):
        raise AssertionError("claimed twice")
    with claimed(tmp_path / "data"):
        assert (tmp_path / "data").is_dir()
