"""`bond up --engine vllm` as a real process that starts a real vLLM server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vllm_servers import vllm_python

from bond_client import Client


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_up_starts_a_server_and_answers_from_it(tiny_policy_path: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, completions, **kwargs):\n"
        "    return [float(len(answer[-1]['content'])) for answer in completions]\n"
    )
    data = tmp_path / "data"
    argv = (
        sys.executable, "-m", "bond_cli", "up", str(tiny_policy_path), "--engine", "vllm",
        "--vllm-python", str(vllm_python()), "--reward-model", f"{tmp_path}/reward.py:reward",
        "--data-dir", str(data), "--port", "0", "--best-of", "4", "--no-train",
    )  # fmt: skip
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BOND_")},
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "CUDA_VISIBLE_DEVICES": "",
    }
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(argv, env=environ, stdout=out, stderr=out) as bond:
        try:
            url = gateway_url(bond, log)
            [served] = json.loads((data / "resolved.json").read_text())["engine"]["urls"]
            with Client(url) as client:
                best = client.chat("Hello", model=f"{tiny_policy_path.name}:bon")
                one = client.chat("Hello", model=f"{tiny_policy_path.name}:distilled")
        finally:
            bond.send_signal(signal.SIGTERM)
            code = bond.wait(120)
    assert code == 0
    assert served.startswith("http://127.0.0.1:")
    assert (best.bond.arm, best.bond.best_of) == ("bon", 4)
    assert best.bond.degraded is None
    assert best.bond.score == float(len(best.choices[0].text))
    assert (one.bond.arm, one.bond.version) == ("distilled", "v0000")
    # the server is gone, and so is its address: what is left can be started and evaluated again
    assert json.loads((data / "resolved.json").read_text())["engine"]["urls"] == []


def gateway_url(bond: subprocess.Popen[bytes], log: Path) -> str:
    """Where the gateway answers, once it does."""
    deadline = time.monotonic() + 500
    while bond.poll() is None and time.monotonic() < deadline:
        _, found, rest = log.read_text().partition("bondserve answers on ")
        if found:
            return rest.split()[0]
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:])
