"""Configuration: closed, layered, and wrong keys are named with the nearest valid one."""

from pathlib import Path
from typing import Any

import pytest

from bond_core.config import ClassifierScorerConfig, LocalEngineConfig, load_config
from bond_core.config.reference import render
from bond_core.errors import ConfigError

MINIMAL = "model: {path: base}\nscorer: {type: classifier, path: rm}\n"
ROOT = Path(__file__).resolve().parents[2]


def load(tmp_path: Path, text: str, flags: Any = None, environ: Any = None) -> Any:
    file = tmp_path / "bond.yaml"
    file.write_text(text)
    return load_config(file, flags, environ or {})


def test_a_minimal_file_gets_the_defaults_and_paths_relative_to_it(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.model.path == tmp_path / "base"
    assert config.model.served_name == "base"
    assert config.scorer == ClassifierScorerConfig(path=tmp_path / "rm")
    assert config.engine == LocalEngineConfig()
    assert (config.server.port, config.arms.best_of) == (8080, 8)


def test_flags_win_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MINIMAL + "server: {port: 1, host: from-file, policy_poll_s: 3}\n"
    monkeypatch.setenv("BOND_SERVER__PORT", "2")
    monkeypatch.setenv("BOND_SERVER__HOST", "from-environment")
    config = load(tmp_path, text, {"server": {"port": 3}})
    assert config.server.port == 3
    assert config.server.host == "from-environment"
    assert config.server.policy_poll_s == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "serve: {}\n", "unknown key 'serve'; did you mean 'server'?"),
        (MINIMAL + "server: {prt: 1}\n", "unknown key 'server.prt'; did you mean 'port'?"),
        (
            MINIMAL + "trainer: {lora: {rnk: 3}}\n",
            "unknown key 'trainer.lora.rnk'; did you mean 'rank'?",
        ),
        ("scorer: {type: classifier, path: rm}\n", "'model' is missing"),
        (MINIMAL + "arms: {best_of: 0}\n", "'arms.best_of'"),
        (MINIMAL + "arms: {best_of: 9, max_best_of: 8}\n", r"best_of \(9\) is over max_best_of"),
        (MINIMAL + "arms: {split: {bon: 0, distilled: 0}}\n", "no arm has a share"),
        (
            "model: {path: base}\nscorer: {function: 'r.py:f'}\n",
            "'scorer' needs a 'type', one of 'classifier', 'pooling', 'function'",
        ),
        (MINIMAL + "engine: {type: lokal}\n", "'engine' needs a 'type', one of 'local', 'vllm'"),
        ("scorer: {type: classifier, path: rm}\n", r"name a model folder, as in `model: \{path"),
        (MINIMAL + "arms: {1: 2}\n", "the key 1 is not text"),
        ("model: [", "not valid YAML"),
        ("- 1\n", "mapping of sections"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_unknown_variables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"BOND_SERVR__PORT.*did you mean 'server'"):
        load(tmp_path, MINIMAL, environ={"BOND_SERVR__PORT": "1"})


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bond.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "bond.yaml", environ={})


def test_a_wrong_variable_inside_a_section_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOND_SERVER__PROT", "1")
    with pytest.raises(ConfigError, match=r"variable BOND_SERVER__PROT\); did you mean 'port'"):
        load_config(
            None, {"model": {"path": "m"}, "scorer": {"type": "function", "function": "r:f"}}
        )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml", environ={})


def test_metrics_cannot_listen_where_the_gateway_does(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"access\.metrics_port is 8080, where the gateway itself"
    ):
        load(tmp_path, MINIMAL + "access: {metrics_port: 8080}\n")
    elsewhere = MINIMAL + "access: {metrics_port: 8080, metrics_host: 10.0.0.1}\n"
    assert load(tmp_path, elsewhere).access.metrics_port == 8080
    free = MINIMAL + "server: {port: 0}\naccess: {metrics_port: 0}\n"
    assert load(tmp_path, free).access.metrics_port == 0


def test_a_teacher_that_is_the_active_version_is_no_path(tmp_path: Path) -> None:
    text = MINIMAL + "trainer: {objective: {type: gkd, teacher: active}}\n"
    assert load(tmp_path, text).trainer.objective.teacher == "active"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "server: {port: 1}\narms: {}\nserver: {host: a}\n",
         r"key 'server' twice, in line 3 and in line 5"),
        (MINIMAL + "server:\n  port: 1\n  host: a\n  port: 2\n",
         r"key 'port' twice, in line 4 and in line 6"),
    ],
)  # fmt: skip
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text)


def test_keys_may_come_twice_where_yaml_merges_them(tmp_path: Path) -> None:
    text = (
        "model: &base {path: base}\nscorer: {type: classifier, path: rm}\n"
        "judge: {<<: *base, type: classifier, path: other}\n"
    )
    assert load(tmp_path, text).judge == ClassifierScorerConfig(path=tmp_path / "other")


def test_a_function_scorer_is_relative_to_the_file(tmp_path: Path) -> None:
    text = "model: {path: base}\nscorer: {type: function, function: 'reward.py:score'}\n"
    assert load(tmp_path, text).scorer.function == f"{tmp_path}/reward.py:score"


def test_the_example_of_the_docs_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs/own-model.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    config = load(tmp_path, example)
    assert config.scorer.function == f"{tmp_path}/rewards.py:score"
    assert (config.arms.best_of, config.trainer.lora.rank) == (8, 16)


def test_every_setting_is_documented() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == render(), (
        "run: python -m bond_core.config.reference > docs/configuration.md"
    )
    assert "|  |\n" not in render(), "a setting has neither a docstring nor bounds"
