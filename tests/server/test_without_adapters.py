"""An engine that takes no adapters: Best-of-N and the reference answer, distilled says why not."""

import asyncio

import pytest
from published_adapters import challenger, publish
from running_gateway import MakeConfig, Run

from bond_core.config import ArmsConfig, SplitConfig
from bond_core.engines import EngineInfo
from bond_core.errors import EngineUnavailableError
from bond_core.store import PolicyRecord
from bond_core.types import PolicyState
from bond_server.services.arms import servable_arms

WITHOUT = {"type": "fake", "adapters": False}


async def test_distilled_is_refused_by_what_to_add(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(engine=WITHOUT)) as running:
        for path, model in (
            ("/v1/distilled", None),
            ("/v1/chat/completions", "tiny:1b:distilled"),
            ("/v1/chat/completions", "tiny:1b:distilled@v0000"),
        ):
            body = {} if model is None else {"model": model}
            response = await running.post(path, **body)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] == "model"
            assert error["code"] == "adapters_unavailable"
            assert "set engine.adapters to true" in error["message"]


async def test_what_is_refused_is_not_listed(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(engine=WITHOUT)) as running:
        listed = (await running.client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["tiny:1b", "tiny:1b:reference", "tiny:1b:bon"]


async def test_the_other_arms_get_its_share(run: Run, make_config: MakeConfig) -> None:
    config = make_config(
        engine=WITHOUT, arms={"split": {"reference": 1, "bon": 1, "distilled": 2}, "best_of": 2}
    )
    async with run(config) as running:
        arms: list[str] = []
        for number in range(40):
            response = await running.post("/v1/chat/completions", model="tiny:1b", user=f"{number}")
            assert response.status_code == 200, response.text
            arms.append(response.json()["bond"]["arm"])
        assert set(arms) == {"reference", "bon"}


async def test_a_gateway_starts_whose_active_version_the_engine_cannot_take(
    run: Run, make_config: MakeConfig
) -> None:
    """Nothing is rolled back: with adapters again, the same version answers."""
    config = make_config()
    path = await publish(config, "v0001")
    async with run(config) as running:
        await running.gateway.store.policies.insert(challenger("v0001", path))
        await running.gateway.controller.tick()
    async with run(make_config(engine=WITHOUT)) as running:
        response = await running.post("/v1/chat/completions", model="tiny:1b:reference")
        assert response.status_code == 200, response.text
        assert await running.gateway.store.policies.active() == "v0001"
    async with run(config) as running:
        assert running.gateway.policies.active == "v0001"


async def test_a_controller_that_cannot_follow_ends_when_it_is_told_to(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    path = await publish(config, "v0001")
    async with run(config) as running:
        await running.gateway.store.policies.insert(challenger("v0001", path))
        await running.gateway.controller.tick()
    async with run(make_config(engine=WITHOUT)) as running:
        with pytest.raises(EngineUnavailableError):
            await running.gateway.policies.follow()
        asked = asyncio.Event()

        async def never(state: PolicyState) -> list[PolicyRecord]:
            asked.set()
            return await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(running.gateway.store.policies, "in_state", never)
        ticking = asyncio.create_task(running.gateway.controller.run())
        await asked.wait()
        ticking.cancel()
        await asyncio.wait({ticking}, timeout=30)
        assert ticking.cancelled()
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("split", "left"),
    [
        (SplitConfig(reference=0.1, bon=0.4, distilled=0.5), (0.1, 0.4, 0.0)),
        (SplitConfig(reference=0, bon=0, distilled=1), (0.0, 1.0, 0.0)),
        (SplitConfig(reference=1, bon=0, distilled=0), (1.0, 0.0, 0.0)),
    ],
)
def test_the_split_that_is_left(
    split: SplitConfig, left: tuple[float, float, float], caplog: pytest.LogCaptureFixture
) -> None:
    info = EngineInfo("m", "", 100, False, 1e-6, no_adapters_because="start it with --enable-lora")
    found = servable_arms(ArmsConfig(split=split), info).split
    assert (found.reference, found.bon, found.distilled) == left
    assert ("--enable-lora" in caplog.text) is (split.distilled > 0)
