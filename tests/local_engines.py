"""A local engine over the tiny model, and waits for what its decode thread does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tiny_models import tiny_policy_path

from bond_core.config import LocalEngineConfig, ModelConfig
from bond_core.engines.local import LocalEngine
from bond_core.types import Message, SamplingParams

__all__ = ["tiny_policy_path"]

PROMPT = [Message("user", "Where is my order?")]
LONG_PROMPT = [Message("user", "Where is my order? It was to come today, please help.")]
PARAMS = SamplingParams(max_tokens=40)
END = 1
ENDLESS = SamplingParams(max_tokens=160, logit_bias={END: -100.0})


@pytest.fixture
async def engine(tiny_policy_path: Path) -> AsyncIterator[LocalEngine]:
    """A started engine with room for 16 rows."""
    engine = LocalEngine(
        LocalEngineConfig(max_rows=16), ModelConfig(path=tiny_policy_path, name="tiny")
    )
    await engine.start()
    yield engine
    await engine.close()


async def until_rows(engine: LocalEngine, enough: Callable[[int], bool]) -> None:
    """Wait until the number of running rows is as wanted; it changes in another thread."""
    async with asyncio.timeout(60):
        while not enough(engine.running_rows):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def until_idle(engine: LocalEngine) -> None:
    """Wait until no row runs."""
    await until_rows(engine, lambda rows: rows == 0)


async def until_running(engine: LocalEngine, count: int) -> None:
    """Wait until so many rows run."""
    await until_rows(engine, lambda rows: rows >= count)
