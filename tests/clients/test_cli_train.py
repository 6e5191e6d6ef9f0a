"""`bond train` with and without its bar, on a tiny model."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from tiny_training import REWARD
from typer.testing import CliRunner

from bond_cli.commands.train import AboveTheBar
from bond_cli.main import app


@pytest.fixture
def arguments(tiny_policy_path: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "rewards.py").write_text(REWARD)
    rows = [json.dumps({"prompt": f"question {number}"}) for number in range(60)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    settings = {
        "model": {"path": str(tiny_policy_path)},
        "scorer": {"type": "function", "function": "rewards.py:reward"},
        "sampling": {"max_tokens": 4},
        "trainer": {"prompts_per_step": 2, "nice": 0},
        "data_dir": "data",
    }
    (tmp_path / "bond.yaml").write_text(json.dumps(settings))
    files = ["--config", str(tmp_path / "bond.yaml"), "--prompts", str(tmp_path / "prompts.jsonl")]
    return ["train", *files, "--max-steps"]


def test_the_bar_shows_where_the_run_goes(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, "2", "--progress"])
    assert result.exit_code == 0, result.output
    assert "2/2 steps" in result.stdout
    assert "last step: reward" in result.stdout


@pytest.mark.parametrize("flag", [[], ["--no-progress"]])
def test_without_a_terminal_there_are_log_lines_alone(
    arguments: list[str], flag: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = CliRunner().invoke(app, [*arguments, "1", *flag])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("memory estimate\n  model ") for line in lines)
    assert "stopped, at step 1" in lines


def test_log_lines_stand_above_the_bar_as_they_are() -> None:
    file = io.StringIO()
    handler = AboveTheBar(Console(file=file, width=20))
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "[a] %s" % ("b" * 30), (), None))
    assert file.getvalue() == f"[a] {'b' * 30}\n"
