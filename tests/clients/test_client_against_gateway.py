"""The wire contract: every method of the client against the real gateway, in one process."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bond_client import AsyncClient, BondInvalidRequestError, BondNotFoundError
from bond_core.config import load_config
from bond_server.app import create_app


def reward(
    prompts: list[object], completions: list[list[dict[str, str]]], **_: object
) -> list[float]:
    """The longer, the better."""
    return [float(len(completion[-1]["content"])) for completion in completions]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    config = load_config(
        flags={
            "model": {"path": tmp_path / "policy", "name": "fake"},
            "engine": {"type": "fake"},
            "scorer": {"type": "function", "function": f"{__file__}:reward"},
            "arms": {"best_of": 4, "max_best_of": 8},
            "data_dir": tmp_path / "data",
        },
        environ={},
    )
    app = create_app(config)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with AsyncClient("http://gateway", transport=transport) as found:
            yield found


async def test_every_answering_method_reaches_its_arm(client: AsyncClient) -> None:
    best = await client.best_of_n("Hello", return_candidates=True, best_of=3)
    assert (best.bond.arm, best.bond.best_of, len(best.bond.candidates)) == ("bon", 3, 3)
    scores = [candidate.score for candidate in best.bond.candidates]
    assert best.bond.score == max(score for score in scores if score is not None)
    assert best.text in [candidate.text for candidate in best.bond.candidates]
    assert best.usage.completion_tokens == sum(c.tokens for c in best.bond.candidates)
    single = await client.distilled("Hello", temperature=0.5, max_tokens=5)
    assert (single.bond.arm, single.bond.version, single.bond.best_of) == ("distilled", "v0000", 1)
    assert single.usage.completion_tokens <= 5
    plain = await client.chat([{"role": "user", "content": "Hello"}], model="fake:reference")
    assert (plain.model, plain.bond.arm) == ("fake:reference", "reference")


async def test_compare_answers_by_the_arms_asked_for(client: AsyncClient) -> None:
    found = await client.compare("Hello", arms=("bon", "reference"), best_of=2)
    assert [(arm.arm, arm.best_of) for arm in found.arms] == [("bon", 2), ("reference", 1)]
    assert all(arm.score == float(len(arm.text)) for arm in found.arms)


async def test_the_state_of_a_fresh_gateway(client: AsyncClient) -> None:
    models = await client.models()
    assert "fake:bon" in [model.id for model in models]
    assert {model.root for model in models} == {"fake"}
    policies = await client.policies()
    assert (policies.active, [p.version for p in policies.versions]) == ("v0000", ["v0000"])
    health = await client.health()
    assert (health.ready, health.active) == (True, "v0000")
    await client.best_of_n("Hello")
    training = await client.training()
    assert (training.run, training.evaluations) == (None, ())
    assert [(arm.arm, arm.requests) for arm in training.arms] == [("bon", 1)]


async def test_errors_carry_the_field_and_the_code(client: AsyncClient) -> None:
    with pytest.raises(BondNotFoundError) as unknown:
        await client.chat("Hello", model="fake:nope")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(BondInvalidRequestError) as too_many:
        await client.best_of_n("Hello", best_of=9)
    assert (too_many.value.status, too_many.value.param) == (400, "best_of")
    with pytest.raises(BondInvalidRequestError) as refused:
        await client.chat("Hello", model="fake", functions=[{"name": "f"}])
    assert refused.value.param == "functions"
