"""The commands as people call them: help, errors, exit codes, and what is printed."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bond_cli.commands.compare import side_by_side
from bond_cli.commands.policy_status import versions_table
from bond_cli.extras import needs
from bond_cli.failure import CommandError, explains_failures
from bond_cli.main import app
from bond_client.answers import parse_comparison
from bond_client.state import parse_policies
from bond_core import __version__

HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "numpy", "pydantic", "httpx")
HELP_SECONDS = 1.0
COMPARISON = {
    "id": "x",
    "model": "demo",
    "arms": [
        {
            "arm": "bon", "id": "a", "version": "v0000", "strategy": "best_of_n", "best_of": 8,
            "text": "the best [of eight]", "finish_reason": "stop", "score": 1.25, "tokens": 200,
            "latency_ms": 81.4, "degraded": None, "note": None,
        },
        {
            "arm": "distilled", "id": "b", "version": "v0002", "strategy": "single", "best_of": 1,
            "text": "one sample", "finish_reason": "stop", "score": 1.5, "tokens": 25,
            "latency_ms": 20.0, "degraded": None, "note": "a note",
        },
    ],
}  # fmt: skip
POLICIES = {
    "active": "v0002",
    "data": [
        {
            "version": version, "state": state, "active": state == "active", "loaded": True,
            "parent": None, "step": step, "created_at": 1.0, "updated_at": 1.0,
            "reason": reason, "evaluation": evaluation,
        }
        for version, state, step, reason, evaluation in (
            ("v0000", "retired", 0, "the reference itself", {}),
            ("v0001", "rejected", 50, "no gain", {"reward_mean": 0.25}),
            ("v0002", "active", 100, "", {
                "reward_mean": 1.0, "reward_ci95": [0.5, 1.5], "kl_nats": 0.75,
                "quantile_mean": 0.8, "n_q": 4.0, "n_kl": None, "win_rate_vs_reference": 0.8,
                "win_rate_vs_best_of_n": 0.4,
            }),
        )
    ],
}  # fmt: skip


def rendered(*parts: object, width: int = 120) -> str:
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


class Gateway(BaseHTTPRequestHandler):
    """Answers the three routes that the commands below read."""

    def do_GET(self) -> None:
        self._answer({"/v1/policies": POLICIES}.get(self.path))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer({"/v1/compare": COMPARISON}.get(self.path))

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _answer(self, body: object) -> None:
        error = {"error": {"message": "no route", "type": "t", "param": None, "code": None}}
        content = json.dumps(error if body is None else body).encode()
        self.send_response(404 if body is None else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("up", "serve", "train", "demo", "eval", "ask", "compare"):
        assert f" {command} " in result.output


@pytest.mark.parametrize("command", ["up", "serve", "train", "demo", "eval", "ask", "compare"])
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"bond {command}" in result.output or f" {command} " in result.output
    assert "--supervised" not in result.output


def test_the_version_is_the_distributions() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"bondserve {__version__}\n")


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time\n"
        "began = time.process_time()\n"
        "from bond_cli.main import app\n"
        "try:\n"
        "    app(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write(f'{time.process_time() - began:.3f} {heavy}')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    seconds, _, heavy = result.stderr.partition(" ")
    assert heavy == "[]"
    assert float(seconds) < HELP_SECONDS
    assert "compare" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["up", "m"], 2, "error: no reward model for m: add --reward-model"),
        (["up", "--engine", "local", "--engine-url", "http://e"], 2, "exclude each other"),
        (["up", "m", "--reward-model", "r:f", "--engine-url", "http://e"], 2, "or add --no-train"),
        (["serve", "--engine", "vllm"], 2, "starts no vLLM servers"),
        (["up", "--config", "missing.yaml"], 2, "error: cannot read missing.yaml: No such file"),
        (["train", "--config", "missing.yaml"], 2, "error: cannot read missing.yaml"),
        (["serve", "m"], 2, "error: no reward model for m"),
        (["ask", "hi", "--url", "http://127.0.0.1:1"], 1, "no answer from http://127.0.0.1:1"),
        (["serv"], 2, "error: No such command 'serv'. Did you mean 'serve'? see `bond --help`\n"),
        (["xyz"], 2, "error: No such command 'xyz'; see `bond --help`\n"),
        (["ask"], 2, "error: Missing argument 'question'; see `bond ask --help`\n"),
        (["keys", "revok"], 2, "Did you mean 'revoke'? see `bond keys --help`\n"),
        (["up", "--prot", "1"], 2, "error: No such option"),
        (["serve", "--port", "many"], 2, "error: Invalid value for '--port'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    arguments: list[str],
    exit_code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("command", [[], ["keys"]])
def test_a_group_alone_is_its_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.output.count("Commands") == 1
    assert "error:" not in result.output


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_port_in_use_is_no_wrong_flag(command: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def reward(prompts, completions):\n    return [0.0]\n")
    settings = {
        "model": {"path": "no-model"},
        "engine": {"type": "fake"},
        "scorer": {"type": "function", "function": "rewards.py:reward"},
        "data_dir": "data",
    }
    (tmp_path / "bond.yaml").write_text(json.dumps(settings))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [command, "--config", str(tmp_path / "bond.yaml"), "--port", port]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already")
    assert result.stderr.count("\n") == 1


def test_an_error_of_the_gateway_is_shown_with_its_status(gateway: str) -> None:
    result = CliRunner().invoke(app, ["ask", "hi", "--url", gateway])
    assert (result.exit_code, result.stderr) == (1, "error: no route (HTTP 404)\n")


def test_compare_prints_two_columns(gateway: str) -> None:
    result = CliRunner().invoke(app, ["compare", "hi", "--url", gateway])
    assert result.exit_code == 0
    assert "bon v0000" in result.stdout
    assert "distilled v0002" in result.stdout


def test_policies_status_prints_the_versions_and_why_some_were_refused(gateway: str) -> None:
    result = CliRunner().invoke(app, ["policies", "status", "--url", gateway])
    assert result.exit_code == 0
    assert "v0001 rejected: no gain" in result.stdout


def test_side_by_side_shows_text_reward_tokens_and_latency() -> None:
    lines = rendered(side_by_side(parse_comparison(COMPARISON))).splitlines()
    text = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert "the best [of eight]" in text["answer"]
    assert "one sample" in text["answer"]
    assert [cell.strip() for cell in text["reward"].split("│")[2:4]] == ["1.250", "1.500"]
    assert [cell.strip() for cell in text["tokens"].split("│")[2:4]] == ["200", "25"]
    assert [cell.strip() for cell in text["latency"].split("│")[2:4]] == ["81 ms", "20 ms"]
    assert "a note" in text["note"]


def test_versions_table_shows_the_numbers_and_a_dash_for_what_is_not_known() -> None:
    text = rendered(versions_table(parse_policies(POLICIES)), width=80)
    rows = {cells[0]: cells[1:] for line in text.splitlines() if (cells := line.split())}
    assert rows["v0002"] == [
        "active", "100", "1.000", "±0.500", "0.750", "0.800", "4", "–", "80.0%", "40.0%",
    ]  # fmt: skip
    assert rows["v0001"] == ["rejected", "50", "0.250", *["–"] * 6]
    assert "…" not in text


def test_an_effective_n_of_a_hundred_digits_fits_the_table() -> None:
    evaluation = {"reward_mean": 1.0, "kl_nats": 300.0, "n_q": 12.345, "n_kl": 5.3e130}
    versions = [{**version, "evaluation": evaluation} for version in POLICIES["data"]]
    text = rendered(versions_table(parse_policies({**POLICIES, "data": versions})), width=80)
    assert text.splitlines()[-2].split()[-4:-2] == ["12.3", "5.3e+130"]


def test_a_missing_package_is_answered_with_its_extra() -> None:
    with pytest.raises(CommandError) as caught, needs("server", "serve"):
        import no_such_package_of_ours  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert str(caught.value) == (
        "`bond serve` needs the Python package 'no_such_package_of_ours', which is not installed; "
        "install it with: pip install 'bondserve[server]'"
    )


def test_ctrl_c_ends_with_the_shells_code_and_a_defect_keeps_its_traceback() -> None:
    @explains_failures
    def interrupted() -> None:
        raise KeyboardInterrupt

    @explains_failures
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as caught:
        interrupted()
    assert caught.value.code == 130
    with pytest.raises(ZeroDivisionError):
        broken()
