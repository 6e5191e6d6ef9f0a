"""What every engine and scorer suite shares: one started instance per implementation."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tiny_models import tiny_adapter
from vllm_servers import POOLING_KEY

from bond_core.config import (
    ClassifierScorerConfig,
    FakeEngineConfig,
    FunctionScorerConfig,
    LocalEngineConfig,
    ModelConfig,
    PoolingScorerConfig,
    VllmEngineConfig,
)
from bond_core.engines import Engine, build_engine
from bond_core.rewards import Scorer, build_scorer

REWARD_FUNCTION = '''
def reward(prompts, completions, **kwargs):
    """Length of the answer, plus a little for the question's."""
    return [
        len(completion[0]["content"]) + len(prompt[-1]["content"]) / 1000
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
'''

POOLING = ("pooling, rendered here", "pooling, rendered there")


@pytest.fixture(params=["fake", "local", pytest.param("vllm", marks=pytest.mark.vllm)])
async def engine(
    request: pytest.FixtureRequest, tiny_policy_path: Path, tmp_path: Path
) -> AsyncIterator[Engine]:
    """A started engine of each kind with room for 64 completions at once."""
    if request.param == "vllm":
        config = VllmEngineConfig(urls=(request.getfixturevalue("policy_url"),))
    elif request.param == "local":
        config = LocalEngineConfig(max_rows=64)
    else:
        config = FakeEngineConfig(capacity=64)
    model = ModelConfig(path=tiny_policy_path, name="tiny")
    engine = build_engine(config, model, adapters_dir=tmp_path / "adapters")
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def adapter_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA of the tiny policy."""
    return tiny_adapter(tmp_path_factory.mktemp("adapters") / "one", seed=1)


@pytest.fixture(scope="session")
def other_adapter_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random LoRA of the tiny policy."""
    return tiny_adapter(tmp_path_factory.mktemp("adapters") / "two", seed=2)


@pytest.fixture(
    params=["classifier", "function", *(pytest.param(p, marks=pytest.mark.vllm) for p in POOLING)]
)
async def scorer(
    request: pytest.FixtureRequest, tiny_reward_path: Path, tmp_path: Path
) -> AsyncIterator[Scorer]:
    """A started scorer of each kind."""
    if request.param == "classifier":
        config = ClassifierScorerConfig(path=tiny_reward_path)
    elif request.param in POOLING:
        url: str = request.getfixturevalue("pooling_url")
        path = tiny_reward_path if request.param == "pooling, rendered here" else None
        config = PoolingScorerConfig(url=url, api_key=POOLING_KEY, path=path)
    else:
        file = tmp_path / "my_reward.py"
        file.write_text(REWARD_FUNCTION)
        config = FunctionScorerConfig(function=f"{file}:reward")
    scorer = build_scorer(config)
    await scorer.start()
    yield scorer
    await scorer.close()
