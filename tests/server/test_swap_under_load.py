"""Versions change while requests run: none fails, and each is answered by one version alone."""

import asyncio
import itertools

from published_adapters import challenger, publish
from running_gateway import MakeConfig, Run, Running, eventually, row_id

from bond_core.config import BondConfig
from bond_core.engines import build_engine
from bond_core.types import Completion

SWAPS = 12


async def test_no_request_fails_and_none_mixes_versions(run: Run, make_config: MakeConfig) -> None:
    config = make_config(
        engine={"type": "fake", "delay_s": 0.005},
        sampling={"max_tokens": 6},
        arms={"split": {"bon": 0, "distilled": 1}},
        server={"policy_poll_s": 0.01},
    )
    names = [f"v{number:04d}" for number in range(SWAPS + 1)]
    paths = {
        name: await publish(config, name, parent=parent)
        for parent, name in itertools.pairwise(names)
    }
    answers: list[tuple[str, str, str]] = []
    done = asyncio.Event()

    async def answered_by(name: str) -> bool:
        return any(version == name for _, version, _ in answers)

    async def user(running: Running, name: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            text = f"{name} asks {number}"
            response = await running.post(
                "/v1/distilled", messages=[{"role": "user", "content": text}], seed=number
            )
            assert response.status_code == 200, response.text
            body = response.json()
            assert response.headers["x-bond-adapter"] == body["bond"]["version"]
            answers.append((row_id(body), body["bond"]["version"], text))

    async with run(config) as running:
        async with asyncio.TaskGroup() as users:
            for index in range(8):
                users.create_task(user(running, f"user-{index}"))
            await eventually(lambda: answered_by(names[0]))
            for parent, name in itertools.pairwise(names):
                policies = running.gateway.store.policies
                await policies.insert(challenger(name, paths[name], parent))
                await eventually(lambda name=name: answered_by(name))
            done.set()
        for version in ("failed", "cancelled"):
            assert running.metric("bond_requests_total", arm="distilled", status=version) == 0
        assert running.metric("bond_policy_transitions_total", outcome="activated") == SWAPS
        drawn: dict[str, tuple[tuple[int, ...], Completion]] = {}
        for id_, version, _ in answers:
            record = await running.gateway.store.completions.get(id_)
            assert record is not None
            assert record.version == version
            drawn[id_] = (record.prompt_token_ids, record.candidates[0].completion)
    assert {version for _, version, _ in answers} == set(names)
    await assert_each_is_its_versions_own(config, names, answers, drawn)


async def assert_each_is_its_versions_own(
    config: BondConfig,
    names: list[str],
    answers: list[tuple[str, str, str]],
    drawn: dict[str, tuple[tuple[int, ...], Completion]],
) -> None:
    """Every answer's log-probabilities are exactly those of the one version that it names."""
    engine = build_engine(config.engine, config.model)
    await engine.start()
    for name in names[1:]:
        await engine.load_adapter(name, config.adapters_dir / name)
    for id_, version, _ in answers:
        prompt, completion = drawn[id_]
        [found] = await engine.token_logprobs(version, prompt, [completion.token_ids])
        assert found == completion.logprobs
    await engine.close()
