"""Policy versions on a real server: the right one answers, alone and among others."""

import asyncio
import itertools
import math
import random
import shutil
import time
from pathlib import Path

import pytest
from published_adapters import publish
from tiny_models import tiny_adapter
from vllm_servers import POLICY_FLAGS

from bond_core.adapters import (
    Manifest,
    ProbeCase,
    adapter_path,
    probe_adapter,
    verify_adapter,
    write_adapter,
)
from bond_core.config import BondConfig
from bond_core.engines.base import TokenScorer
from bond_core.engines.local import LocalEngine
from bond_core.errors import AdapterError, ProbeError
from bond_core.store import open_store
from bond_core.types import Completion, Message, SamplingParams
from bond_server.metrics import Metrics
from bond_server.services.policies import PolicyRegistry

from .conftest import Connect

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

PROMPT = [Message("user", "Where is my order?")]
PARAMS = SamplingParams(max_tokens=24)
MAX_LORAS = int(POLICY_FLAGS[POLICY_FLAGS.index("--max-loras") + 1])

SERVED_TOLERANCE_NATS = 2e-4
"""Of a token's log-probability between vLLM and the learner's own forward pass, float32 on a CPU;
the largest difference that was seen is 2e-5."""


async def test_reference_rows_among_adapter_rows_equal_reference_rows_alone(
    policy_url: str, connect: Connect, tmp_path: Path
) -> None:
    """Over twice as many successive versions as the server has slots: the base model's own rows
    get the delta of an adapter there, which is why the reference is an adapter too."""
    engine = await connect(policy_url)
    drawn = await engine.generate("v0000", PROMPT, PARAMS, n=4)
    tokens = [completion.token_ids for completion in drawn.completions]
    alone = await engine.token_logprobs("v0000", drawn.prompt_token_ids, tokens)
    for number in range(1, 2 * MAX_LORAS + 1):
        version = f"v{number:04d}"
        await engine.load_adapter(version, tiny_adapter(tmp_path / version, seed=number, scale=0.1))
        *_, among, other = await asyncio.gather(
            *(engine.generate(version, PROMPT, PARAMS, n=4) for _ in range(3)),
            engine.token_logprobs("v0000", drawn.prompt_token_ids, tokens),
            engine.token_logprobs(version, drawn.prompt_token_ids, tokens),
        )
        for one, mixed, adapted in zip(alone, among, other, strict=True):
            assert mixed == pytest.approx(one, abs=SERVED_TOLERANCE_NATS)
            assert max(abs(a - b) for a, b in zip(one, adapted, strict=True)) > 0.05
        sampled = (await engine.generate("v0000", PROMPT, PARAMS, n=2)).completions
        for completion in sampled:
            [found] = await engine.token_logprobs(
                "v0000", drawn.prompt_token_ids, [completion.token_ids]
            )
            assert completion.logprobs == pytest.approx(found, abs=SERVED_TOLERANCE_NATS)
        await engine.drop_adapter(version)


async def test_served_log_probabilities_are_the_learners(
    policy_url: str, connect: Connect, exact: LocalEngine, tmp_path: Path
) -> None:
    engine = await connect(policy_url)
    path = tiny_adapter(tmp_path / "adapter", seed=3)
    for served in (engine, exact):
        await served.load_adapter("v0001", path)
    for version in ("v0000", "v0001"):
        for temperature in (1.0, 0.7):
            params = SamplingParams(max_tokens=24, temperature=temperature)
            drawn = await engine.generate(version, PROMPT, params, n=8)
            tokens = [completion.token_ids for completion in drawn.completions]
            own = await exact.token_logprobs(version, drawn.prompt_token_ids, tokens, temperature)
            scored = await engine.token_logprobs(
                version, drawn.prompt_token_ids, tokens, temperature
            )
            for completion, mine, theirs in zip(drawn.completions, own, scored, strict=True):
                assert completion.logprobs == pytest.approx(mine, abs=SERVED_TOLERANCE_NATS)
                assert theirs == pytest.approx(mine, abs=SERVED_TOLERANCE_NATS)


def published_config(folder: Path, model: Path) -> BondConfig:
    """Versions are published with probes of the learner's own engine, as a trainer does."""
    return BondConfig.model_validate(
        {
            "model": {"path": model, "name": "tiny"},
            "scorer": {"type": "function", "function": "statistics:fmean"},
            "engine": {"type": "local"},
            "data_dir": folder / "data",
        }
    )


async def test_the_probe_refuses_the_previous_version_under_the_new_name(
    policy_url: str, connect: Connect, tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = published_config(tmp_path, tiny_policy_path)
    for number, parent in ((1, "v0000"), (2, "v0001")):
        await publish(
            config,
            f"v{number:04d}",
            save=lambda folder, number=number: tiny_adapter(folder, seed=number),
            parent=parent,
        )
    engine = await connect(policy_url)
    manifest = verify_adapter(adapter_path(config.adapters_dir, "v0002"))
    noise = engine.info.logprob_noise_nats

    async def check(where: TokenScorer) -> None:
        await probe_adapter(where, manifest, noise)

    with pytest.raises(ProbeError, match="v0002"):
        await engine.load_adapter("v0002", adapter_path(config.adapters_dir, "v0001"), check)
    assert await engine.loaded_versions() == ["v0000"]
    await engine.load_adapter("v0002", adapter_path(config.adapters_dir, "v0002"), check)
    report = await probe_adapter(engine, manifest, noise)
    assert report.distance < 0.01 < 0.25 * report.distance_to_nearest


async def test_a_rank_that_the_server_does_not_take_is_the_adapters_error(
    policy_url: str, connect: Connect, tmp_path: Path
) -> None:
    engine = await connect(policy_url)
    with pytest.raises(AdapterError, match="rank"):
        await engine.load_adapter("v0001", tiny_adapter(tmp_path / "big", seed=1, rank=16))
    assert await engine.loaded_versions() == ["v0000"]
    assert len((await engine.generate("v0000", PROMPT, PARAMS, n=2)).completions) == 2


SWAPS = 100
USERS = 6


async def test_a_hundred_swaps_under_streams_fail_none_and_mix_none(
    policy_url: str, connect: Connect, exact: LocalEngine, tiny_policy_path: Path, tmp_path: Path
) -> None:
    """Six users stream from whatever `distilled` means while it changes a hundred times. Every
    answer has the log-probabilities of the one version that it began with."""
    config = published_config(tmp_path, tiny_policy_path)
    versions = ["v0000"]
    for number in range(1, SWAPS + 1):
        version = f"v{number:04d}"
        path = tiny_adapter(tmp_path / "made" / version, seed=number, scale=0.1)
        await exact.load_adapter(version, path)
        versions.append(version)
    await write_versions(config, exact, versions, tmp_path / "made")
    engine = await connect(policy_url)
    answers: list[tuple[str, tuple[int, ...], Completion]] = []
    done = asyncio.Event()
    store = await open_store(config.store_url, "process", 8, 5.0)
    registry = PolicyRegistry(store.policies, engine, config.adapters_dir, 4, Metrics())

    async def user(number: int) -> None:
        noise = random.Random(number)
        while not done.is_set():
            version = registry.active
            params = SamplingParams(max_tokens=noise.randint(4, 24), seed=noise.getrandbits(32))
            async with registry.using(version):
                pieces = [piece async for piece in engine.stream(version, PROMPT, params)]
            completion = pieces[-1].completion
            assert completion is not None
            assert "".join(piece.text for piece in pieces) == completion.text
            answers.append((version, pieces[-1].prompt_token_ids, completion))

    async def controller() -> None:
        for version in versions[1:]:
            await registry.load(version)
            registry.switch(version)
            await asyncio.sleep(0.05)
        done.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(controller())
        for number in range(USERS):
            group.create_task(user(number))
    await store.close()
    assert len({version for version, _, _ in answers}) > SWAPS / 2
    for version, prompt, completion in answers:
        [own] = await exact.token_logprobs(version, prompt, [completion.token_ids])
        assert completion.logprobs == pytest.approx(own, abs=SERVED_TOLERANCE_NATS), version
        # and nobody else's: neighbours differ by far more than the tolerance on every answer
        before = versions[versions.index(version) - 1] if version != "v0000" else versions[1]
        [others] = await exact.token_logprobs(before, prompt, [completion.token_ids])
        assert max(abs(a - b) for a, b in zip(own, others, strict=True)) > 5e-3


async def write_versions(
    config: BondConfig, exact: LocalEngine, versions: list[str], made: Path
) -> None:
    """The directories of all versions, with true probes, from one engine that holds them all."""
    for parent, version in itertools.pairwise(versions):
        drawn = await exact.generate(version, PROMPT, SamplingParams(max_tokens=16, seed=1), n=2)
        tokens = [completion.token_ids for completion in drawn.completions]
        sums = {
            name: [
                math.fsum(values)
                for values in await exact.token_logprobs(name, drawn.prompt_token_ids, tokens)
            ]
            for name in (version, parent, "v0000")
        }
        manifest = Manifest(
            version=version,
            parent=parent,
            base_model="tiny",
            base_revision=exact.info.base_revision,
            tokenizer_sha256=exact.info.tokenizer_sha256,
            step=1,
            created_at=time.time(),
            objective={"type": "jbond"},
            sampling=config.sampling.model_dump(),
            probe=[
                ProbeCase(
                    prompt_token_ids=list(drawn.prompt_token_ids),
                    completion_token_ids=list(tokens[i]),
                    this=sums[version][i],
                    parent=sums[parent][i],
                    reference=sums["v0000"][i],
                )
                for i in range(2)
            ],
        )
        write_adapter(
            config.adapters_dir,
            manifest,
            lambda folder, version=version: (
                [
                    shutil.copy(made / version / name, folder)
                    for name in ("adapter_config.json", "adapter_model.safetensors")
                ]
                and None
            ),
        )
