"""Gateways for tests: the fake engine, a reward function in a file, SQLite in a folder.

Each test runs real apps with their lifespan; what has to fail fails for a real reason.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from bond_core.config import BondConfig, load_config
from bond_core.types import PolicyState
from bond_server.app import create_app
from bond_server.gateway import Gateway

MODEL = "tiny:1b"
"""A base name with a colon, so that ids have to be matched whole."""

POLL_S = 0.005

REWARDS = """
import time


def _texts(completions):
    return [turns[0]["content"] for turns in completions]


def length(prompts, completions, **kwargs):
    return [float(len(text)) for text in _texts(completions)]


def negative_length(prompts, completions, **kwargs):
    return [-float(len(text)) for text in _texts(completions)]


def tied(prompts, completions, **kwargs):
    return [1.5 for _ in completions]


def raises(prompts, completions, **kwargs):
    raise RuntimeError("the reward function broke")


def not_a_number(prompts, completions, **kwargs):
    return [float("nan") for _ in completions]


def slow(prompts, completions, **kwargs):
    time.sleep(0.2)
    return length(prompts, completions)


CALLS = []


def breaks_once(prompts, completions, **kwargs):
    CALLS.append(len(completions))
    if len(CALLS) == 1:
        raise RuntimeError("the reward function broke")
    return length(prompts, completions)
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway under test and a client that speaks to it."""

    app: FastAPI
    gateway: Gateway
    client: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """POST a JSON body with a one-turn conversation, unless `messages` says otherwise."""
        body.setdefault("messages", [{"role": "user", "content": "where is my parcel?"}])
        return await self.client.post(path, json=body)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample at /metrics; 0 if there is none."""
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


class MakeConfig(Protocol):
    def __call__(self, **sections: Any) -> BondConfig: ...


Run = Callable[[BondConfig], AbstractAsyncContextManager[Running]]


@pytest.fixture
def rewards_file(tmp_path: Path) -> Path:
    """A Python file of reward functions."""
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)
    return file


@pytest.fixture
def make_config(tmp_path: Path, rewards_file: Path) -> MakeConfig:
    """Configurations over the fake engine; sections given are merged over the defaults."""

    def make(**sections: Any) -> BondConfig:
        defaults: dict[str, Any] = {
            "model": {"path": str(tmp_path / "no-model"), "name": MODEL},
            "engine": {"type": "fake"},
            "scorer": {"type": "function", "function": f"{rewards_file}:length"},
            "data_dir": str(tmp_path / "data"),
            "arms": {"best_of": 4, "max_best_of": 16},
            "server": {"policy_poll_s": 0.02},
        }
        for name, value in sections.items():
            merge = isinstance(value, dict) and name in ("arms", "server")
            defaults[name] = {**defaults[name], **value} if merge else value
        return load_config(flags=defaults, environ={})

    return make


@pytest.fixture
def run() -> Run:
    """Runs a gateway with its lifespan and gives a client for it."""

    @asynccontextmanager
    async def running(config: BondConfig) -> AsyncGenerator[Running]:
        app = create_app(config)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield Running(app, app.state.gateway, client)

    return running


def scorer(rewards_file: Path, name: str) -> dict[str, str]:
    """The configuration of one of the reward functions."""
    return {"type": "function", "function": f"{rewards_file}:{name}"}


def row_id(body: dict[str, Any]) -> str:
    """The id of an answer's row in the log."""
    assert body["id"].startswith("chatcmpl-")
    return body["id"].removeprefix("chatcmpl-")


async def settled(running: Running) -> None:
    """Wait until every answer so far has been measured."""
    await running.gateway.background.drain(60.0)
    await running.gateway.after_answer.drain(60.0)


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> None:
    """Wait for what a loop of the gateway does at its next rounds."""
    for _ in range(int(timeout_s / POLL_S)):
        if await condition():
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"it did not happen within {timeout_s:g} s")


async def until_active(running: Running, version: str) -> None:
    """Wait until `distilled` means a version."""

    async def active() -> bool:
        return running.gateway.policies.active == version

    await eventually(active)


async def until_state(running: Running, version: str, state: PolicyState) -> str:
    """Wait until the store has a version in a state; returns the reason."""
    policies = running.gateway.store.policies

    async def reached() -> bool:
        record = await policies.get(version)
        return record is not None and record.state is state

    await eventually(reached)
    record = await policies.get(version)
    assert record is not None
    return record.reason
