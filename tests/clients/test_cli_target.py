"""What flags mean, and the configuration that reaches the children."""

import json
import socket
from pathlib import Path

import pytest

from bond_cli.failure import CommandError
from bond_cli.ready import base_url
from bond_cli.resolved import child_environ, free_port, with_chosen_port, write_resolved
from bond_cli.target import Target, flags_of, merge, read_target, scorer_flag
from bond_core.config import FunctionScorerConfig, PoolingScorerConfig, load_config
from bond_core.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bond.yaml"
    path.write_text(
        "model: {path: policy}\n"
        "scorer: {type: classifier, path: reward, batch_size: 3}\n"
        "arms: {best_of: 4}\n"
        "data_dir: data\n"
    )
    return path


def test_only_flags_that_were_given_are_in_the_result() -> None:
    assert flags_of(Target()) == {}
    assert flags_of(Target(model=Path("m"), port=0, best_of=2, data_dir=Path("d"))) == {
        "model": {"path": Path("m")},
        "arms": {"best_of": 2},
        "server": {"port": 0},
        "data_dir": Path("d"),
    }


def test_a_reward_model_is_a_folder_a_url_or_a_function(tmp_path: Path) -> None:
    for url in ("http://gpu-1:8001", "https://rewards.example/team/v1"):
        assert scorer_flag(url, "--judge") == {"type": "pooling", "url": url}
    assert scorer_flag(str(tmp_path), "--judge") == {"type": "classifier", "path": str(tmp_path)}
    assert scorer_flag(f"{tmp_path}/r.py:reward", "--judge") == {
        "type": "function",
        "function": f"{tmp_path}/r.py:reward",
    }
    assert scorer_flag("package.module:reward", "--judge") == {
        "type": "function",
        "function": "package.module:reward",
    }
    assert scorer_flag("https://r:1", "--judge") == {"type": "pooling", "url": "https://r:1"}


def test_a_file_of_functions_is_answered_with_their_names(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "import math\n\ndef short(prompts, completions):\n    ...\n\ndef _inner(): ...\n"
    )
    with pytest.raises(CommandError, match=r"name its function, as --judge .*rewards\.py:short$"):
        scorer_flag(str(file), "--judge")
    file.write_text("def broken(:")
    with pytest.raises(CommandError, match=r"rewards\.py:reward$"):
        scorer_flag(str(file), "--judge")


def test_a_folder_whose_name_has_a_colon_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "reward:v2"
    folder.mkdir()
    assert scorer_flag(str(folder), "--judge")["type"] == "classifier"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(model=Path("m")), "no reward model for m: add --reward-model"),
        (Target(reward_model="r"), "--reward-model without a MODEL"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_remedy(target: Target, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        read_target(target)
    assert caught.value.exit_code == 2


def test_flags_go_over_the_file_and_a_scorer_of_another_type_replaces_it(
    file: Path, tmp_path: Path
) -> None:
    target = Target(config=file, reward_model="mod:reward", port=1234)
    config = read_target(target)
    assert config.scorer == FunctionScorerConfig(function="mod:reward")
    assert config.model.path == tmp_path / "policy"
    assert (config.server.port, config.arms.best_of) == (1234, 4)


def test_a_reward_model_at_a_url_replaces_the_files_and_takes_its_key_from_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOND_SCORER__API_KEY", "sk-secret")
    target = Target(config=file, reward_model="http://gpu-1:8001/v1", judge="http://gpu-2:8001")
    config = read_target(target)
    assert config.scorer == PoolingScorerConfig(url="http://gpu-1:8001", api_key="sk-secret")
    assert config.judge == PoolingScorerConfig(url="http://gpu-2:8001")
    assert "sk-secret" not in repr(config.scorer)


def test_a_url_that_is_none_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match="'http://:8001' is no URL of a server"):
        read_target(Target(config=file, reward_model="http://:8001"))


def test_a_scorer_of_the_same_type_keeps_the_files_other_keys(file: Path) -> None:
    config = read_target(Target(config=file, reward_model="/other"))
    assert config.scorer.model_dump()["path"] == Path("/other")
    assert config.scorer.model_dump()["batch_size"] == 3


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bond.yaml"
    path.write_text("model: {path: m}\nscorer: {type: function, function: 'a:b'}\nservr: {}\n")
    with pytest.raises(ConfigError, match="unknown key 'servr'; did you mean 'server'"):
        read_target(Target(config=path))


def test_merge_is_deep_but_for_sections_with_a_type() -> None:
    below = {"a": {"x": 1, "y": 2}, "scorer": {"type": "classifier", "path": "p"}, "k": 1}
    over = {"a": {"y": 3}, "scorer": {"type": "function", "function": "f:g"}, "k": 2}
    assert merge(below, over) == {
        "a": {"x": 1, "y": 3},
        "scorer": {"type": "function", "function": "f:g"},
        "k": 2,
    }


def test_children_read_what_the_parent_resolved(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOND_ARMS__BEST_OF", "6")
    config = read_target(Target(config=file, port=4321, judge="./judge.py:f"))
    path = write_resolved(config)
    assert path == (tmp_path / "data" / "resolved.json").resolve()
    monkeypatch.delenv("BOND_ARMS__BEST_OF")
    monkeypatch.chdir("/")
    again = load_config(path)
    assert (
        again.model_dump()
        == config.model_copy(update={"data_dir": (tmp_path / "data").resolve()}).model_dump()
    )
    assert again.arms.best_of == 6
    values = json.loads(path.read_text())
    assert Path(values["model"]["path"]).is_absolute()
    assert Path(values["judge"]["function"].partition(":")[0]).is_absolute()


def test_children_do_not_see_our_variables() -> None:
    environ = child_environ({"BOND_SERVER__PORT": "1", "PATH": "/bin"})
    assert environ == {"PATH": "/bin", "PYTHONUNBUFFERED": "1"}


def test_port_zero_becomes_a_free_port(file: Path) -> None:
    config = with_chosen_port(read_target(Target(config=file, port=0)))
    assert 1024 <= config.server.port <= 65535
    assert config.arms.best_of == 4


def test_a_port_in_use_is_an_error_that_names_the_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            free_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_the_url_can_be_reached_from_here(host: str, url: str) -> None:
    assert base_url(host, 80) == url
