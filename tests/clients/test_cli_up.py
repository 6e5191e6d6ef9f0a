"""`bond up` as a real process with real children, over the fake engine and a reward function."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bond_client import Client

TIMEOUT_S = 60


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, completions, **kwargs):\n"
        "    return [float(len(answer[-1]['content'])) for answer in completions]\n"
    )
    path = tmp_path / "bond.yaml"
    path.write_text(
        "model: {path: policy, name: fake}\n"
        "engine: {type: fake}\n"
        "scorer: {type: function, function: 'reward.py:reward'}\n"
        "arms: {split: {reference: 0, bon: 1, distilled: 0}}\n"
        "data_dir: data\n"
    )
    return path


@contextmanager
def bond(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "bond_cli", *arguments]
    with subprocess.Popen(
        command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def url_in(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if "bondserve answers on " in line:
            return line.split()[-1]
    raise AssertionError(f"never ready: {process.stderr and process.stderr.read()}")


def test_up_serves_and_a_restart_goes_on_with_the_same_log(config_file: Path) -> None:
    arguments = ("up", "--config", str(config_file), "--port", "0", "--no-train", "--best-of", "3")
    ids: list[str] = []
    for run in range(2):
        with bond(*arguments) as process:
            url = url_in(process)
            with Client(url) as client:
                answer = client.chat("Hello", model="fake")
                assert (answer.bond.arm, answer.bond.best_of) == ("bon", 3)
                ids.append(answer.id)
                [bon] = [arm for arm in client.training().arms if arm.arm == "bon"]
                assert bon.requests == run + 1
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0
            assert "bond | stopping" in out
    assert ids[0] != ids[1]


def test_a_gateway_that_cannot_start_ends_up_with_its_reason(config_file: Path) -> None:
    config_file.with_name("reward.py").write_text("def other():\n    pass\n")
    with bond("up", "--config", str(config_file), "--port", "0", "--no-train") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "has no 'reward'" not in out  # told once, at the end
    assert err.startswith("error: the gateway ended: reward function ")
    assert "has no 'reward'" in err
    assert err.count("\n") == 1


def test_a_gateway_with_keys_is_announced_with_the_key(config_file: Path) -> None:
    with bond("keys", "create", "first", "--config", str(config_file)) as process:
        key, _ = process.communicate(timeout=TIMEOUT_S)
    with bond("up", "--config", str(config_file), "--port", "0", "--no-train") as process:
        url = url_in(process)
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(6)]
        assert said[:3] == ["models: fake", "key: the one in BONDSERVE_API_KEY", ""]
        assert said[4] == '-H "authorization: Bearer $BONDSERVE_API_KEY" \\'
        with bond("ask", "Hello", "--url", url) as asking:
            _, why = asking.communicate(timeout=TIMEOUT_S)
        assert asking.returncode == 1
        assert why.endswith(
            "(HTTP 401); a command takes the key from --api-key or the variable BONDSERVE_API_KEY\n"
        )
        with bond("ask", "Hello", "--url", url, "--api-key", key.strip()) as asking:
            assert asking.wait(timeout=TIMEOUT_S) == 0
