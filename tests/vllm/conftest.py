"""Real vLLM servers for the tests of the engine over them."""

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from vllm_servers import (
    POLICY_ENVIRONMENT,
    POLICY_FLAGS,
    VllmServer,
    free_port,
    serve_command,
    start_server,
)

from bond_core.config import LocalEngineConfig, ModelConfig, VllmEngineConfig
from bond_core.engines.local import LocalEngine
from bond_core.engines.vllm import VllmEngine

HOSTILE = {"repetition_penalty": 1.3, "top_k": 1, "temperature": 0.2, "top_p": 0.1, "min_p": 0.5}
"""What a model's folder may tell vLLM to do to requests that leave something out."""

Connect = Callable[..., Awaitable[VllmEngine]]


@pytest.fixture(scope="session")
def hostile_policy_path(tiny_policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with a `generation_config.json` that would change every answer."""
    path = tmp_path_factory.mktemp("tiny") / "hostile"
    shutil.copytree(tiny_policy_path, path)
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | HOSTILE | {"do_sample": True}))
    return path


@pytest.fixture(scope="session")
def other_server(
    hostile_policy_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    """A second server of the same weights, which obeys the hostile `generation_config.json`."""
    flags = [flag for flag in POLICY_FLAGS if flag not in ("--generation-config", "vllm")]
    port = free_port()
    argv = serve_command(hostile_policy_path, port, *flags, "--served-model-name", "tiny-served")
    log_path = tmp_path_factory.mktemp("vllm") / "other.log"
    with start_server(argv, POLICY_ENVIRONMENT, port, log_path) as server:
        yield server


@pytest.fixture
async def connect(tiny_policy_path: Path, tmp_path: Path) -> AsyncIterator[Connect]:
    """Starts engines over servers; closes them after the test."""
    async with AsyncExitStack() as stack:

        async def connected(*urls: str, **settings: Any) -> VllmEngine:
            config = VllmEngineConfig(urls=urls, **{"health_every_s": 0.2, **settings})
            model = ModelConfig(path=tiny_policy_path, name="tiny")
            engine = VllmEngine(config, model, adapters_dir=tmp_path / "data" / "adapters")
            stack.push_async_callback(engine.close)
            await engine.start()
            return engine

        yield connected


@pytest.fixture
async def exact(tiny_policy_path: Path) -> AsyncIterator[LocalEngine]:
    """The same weights in this process, as the learner runs them."""
    engine = LocalEngine(
        LocalEngineConfig(max_adapters=200), ModelConfig(path=tiny_policy_path, name="tiny")
    )
    await engine.start()
    yield engine
    await engine.close()
