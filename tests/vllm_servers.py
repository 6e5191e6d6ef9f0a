"""Real vLLM servers for tests, each in a process group of its own.

vLLM lives in an environment of its own, because it pins its own torch, transformers and FastAPI.
Tests that need it carry the marker `vllm`, which the ordinary run leaves out; `make test-vllm`
makes the environment and runs them. A test that was selected never skips for want of it.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 240.0
"""A tiny model is up after 40 s on two idle cores."""
STOP_S = 20.0
_TAIL_LINES = 40

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Little memory, no network, and cores left for others."""


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A server that answered `/health`; `process` leads the process group."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path


def vllm_python() -> Path:
    """The Python of vLLM's environment. Fails the test if there is none."""
    default = Path(__file__).resolve().parents[1] / ".venv-vllm" / "bin" / "python"
    python = Path(os.environ.get("BONDSERVE_TEST_VLLM_PYTHON", default))
    if not python.is_file():
        pytest.fail(
            f"{python} does not exist: run the tests that need vLLM with  make test-vllm , or name "
            "the Python that vLLM is installed for in BONDSERVE_TEST_VLLM_PYTHON",
            pytrace=False,
        )
    return python


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(model: Path, port: int, *flags: str) -> list[str]:
    """The command of a server for the model in a folder, with the API key and name left out."""
    module = "vllm.entrypoints.openai.api_server"  # `vllm serve` fails in the CPU build
    return [
        str(vllm_python()), "-m", module, "--model", str(model), "--host", "127.0.0.1",
        "--port", str(port), "--enforce-eager", *flags,
    ]  # fmt: skip


@contextmanager
def start_server(
    argv: Sequence[str], env: Mapping[str, str], port: int, log_path: Path
) -> Iterator[VllmServer]:
    """Run a server until the block ends; enters it once `/health` answers.

    `env` goes over this process's environment and `ENVIRONMENT`. Output goes to `log_path`. Raises
    `RuntimeError` with the end of the log if the server ends or is not up after `START_S`.
    """
    url = f"http://127.0.0.1:{port}"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **env},
            start_new_session=True,  # its workers are stopped with it
        )
    try:
        _await_health(process, url, log_path)
        yield VllmServer(url, process, log_path)
    finally:
        stop_server(process)


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers, by force if it does not end in `STOP_S`."""
    for sent, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        try:
            os.killpg(process.pid, sent)
            os.killpg(process.pid, signal.SIGCONT)  # one that was stopped hears nothing
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait(STOP_S)


def log_tail(log_path: Path) -> str:
    """The last lines of a server's log."""
    lines = log_path.read_text(errors="replace").splitlines() if log_path.is_file() else []
    return "\n".join(lines[-_TAIL_LINES:])


def _await_health(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            ended = f"the server ended with {process.returncode} before it was up"
            raise RuntimeError(f"{ended}:\n{log_tail(log_path)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise RuntimeError(f"the server was not up after {START_S:.0f} s:\n{log_tail(log_path)}")


POOLING_FLAGS = (
    "--runner", "pooling", "--dtype", "float32", "--max-model-len", "256", "--block-size", "32",
)  # fmt: skip
"""For a tiny reward model; float32, so that its scores equal those of the in-process one."""
POOLING_KEY = "sk-pooling"


@pytest.fixture(scope="session")
def pooling_url(tiny_reward_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real pooling server that serves the tiny reward model by the name `tiny-reward`, and
    asks for `POOLING_KEY`."""
    port = free_port()
    named = ("--served-model-name", "tiny-reward", "--api-key", POOLING_KEY)
    argv = serve_command(tiny_reward_path, port, *POOLING_FLAGS, *named)
    log_path = tmp_path_factory.mktemp("vllm") / "pooling.log"
    with start_server(argv, {}, port, log_path) as server:
        yield server.url


POLICY_FLAGS = (
    "--dtype", "float32", "--max-model-len", "256", "--block-size", "32",
    "--enable-lora", "--max-lora-rank", "8", "--max-loras", "6", "--max-cpu-loras", "12",
    # without it lm_head is wrapped too, and two scorings in one batch end the server (on a CPU)
    "--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
    "down_proj",
    "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1",
    "--scheduling-policy", "priority",
    # a prompt with a seed that is read in parts ends the server (on a CPU)
    "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048",
)  # fmt: skip
"""For a tiny policy; float32, so that its log-probabilities equal those of the learner."""
POLICY_ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@pytest.fixture(scope="session")
def policy_url(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server that serves the tiny policy by the name `tiny-served`."""
    port = free_port()
    argv = serve_command(
        tiny_policy_path, port, *POLICY_FLAGS, "--served-model-name", "tiny-served"
    )
    log_path = tmp_path_factory.mktemp("vllm") / "policy.log"
    with start_server(argv, POLICY_ENVIRONMENT, port, log_path) as server:
        yield server.url
