"""Training against a real vLLM server: it learns within bounds, and waits while it is away.

The server computes in float32, so that its log-probabilities equal the learner's to rounding.
"""

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from aiohttp import web
from tiny_training import config_of, prompts_file
from vllm_servers import (
    POLICY_ENVIRONMENT,
    POLICY_FLAGS,
    free_port,
    serve_command,
    start_server,
)

from bond_core.config import BondConfig
from bond_core.engines.vllm.engine import BACKGROUND_PRIORITY
from bond_core.store import TrainingRecord, open_store
from bond_core.types import Message
from bond_trainer import run_training
from bond_trainer.evaluation.drawn import draw_policies
from bond_trainer.logprobs import TokenRow, token_logprobs
from bond_trainer.lora import ANCHOR, POLICY
from bond_trainer.metrics_log import read_metrics
from bond_trainer.opening import open_parts
from bond_trainer.rollouts import Draw, sample

pytestmark = pytest.mark.vllm

TOLERANCE_NATS = 1e-4
"""Of a whole answer's log-probability, float32 here and there; 2e-5 was measured."""


def served(folder: Path, model: Path, url: str, **trainer: Any) -> BondConfig:
    """The tiny trainer with its rollouts from a server."""
    rollouts = {"engine": "served", **trainer.pop("rollouts", {})}
    return config_of(folder, model, {"type": "vllm", "urls": [url]}, rollouts=rollouts, **trainer)


def steps_of(config: BondConfig) -> list[dict[str, Any]]:
    return [row for row in read_metrics(config.metrics_dir) if "train/loss" in row]


def names_on(url: str) -> set[str]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
        return {entry["id"] for entry in json.load(answer)["data"]}


async def test_it_learns_as_with_an_engine_of_its_own(
    tiny_policy_path: Path, tmp_path: Path, policy_url: str
) -> None:
    config = served(tmp_path, tiny_policy_path, policy_url)
    await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=30)
    store = await open_store(config.store_url)
    versions = [v.version for v in await store.policies.all()]
    last = (await store.evaluations.latest(1))[0].metrics
    await store.close()
    assert versions == ["v0000", "v0001", "v0002"]
    # what the same run on an engine of its own is asked for, in test_loop
    assert last["reward_ci95"][0] > last["reference"]["reward_ci95"][1]
    assert last["quantile_mean"] > 0.6
    assert last["win_rate_vs_reference_ci95"][0] > 0.5
    rows = steps_of(config)
    assert len(rows) == 30
    for row in rows:
        assert abs(row["train/mismatch_kl"]) < 1e-6
        assert 0 <= row["train/mismatch_k3"] < 1e-9
        assert row["train/importance_ratio_mean"] == pytest.approx(1, abs=1e-4)
        assert row["train/importance_truncated_share"] == 0
        assert row["train/logprob_mismatch"] < TOLERANCE_NATS
        assert row["rollout/staleness"] == 0
        assert row["seconds/publish"] > 0
    assert not list(config.adapters_dir.glob(".rollouts/*"))
    assert not [name for name in names_on(policy_url) if name.startswith((POLICY, ANCHOR))]
    prompts = [(Message("user", f"question {number}"),) for number in range(16)]
    found = await draw_policies(
        config,
        {"v0002": config.adapters_dir / "v0002"},
        prompts,
        num_samples=4,
        num_reference_samples=4,
    )
    challenger = found.adapters["v0002"]
    assert challenger.draws.rewards_PS.mean() > found.reference.draws.rewards_PS.mean()
    assert challenger.laws.kl_PS.mean() == pytest.approx(last["kl_nats"], rel=0.3)


async def test_what_is_served_are_the_learners_policy_and_anchor(
    tiny_policy_path: Path, tmp_path: Path, policy_url: str
) -> None:
    config = served(tmp_path, tiny_policy_path, policy_url)
    prompts = [(Message("user", f"question {number}"),) for number in range(4)]
    async with open_parts(config, prompts_file(tmp_path)) as parts:
        pair = parts.learner.pair
        for name, scale in ((POLICY, 0.05), (ANCHOR, 0.02)):
            for key, factor in pair.factors(name).items():
                if key.endswith(".B"):
                    factor.data.normal_(std=scale)
            await parts.publisher.publish()
        draws = [Draw(POLICY, 4, "policy"), Draw(ANCHOR, 4, "anchor")]
        params = config.sampling.params()
        for name, drawn in zip(
            (POLICY, ANCHOR), await sample(parts.engine, draws, prompts, params, 0), strict=True
        ):
            rows = [
                TokenRow(found.prompt_token_ids, completion.token_ids)
                for found in drawn
                for completion in found.completions
            ]
            reported = [sum(c.logprobs) for found in drawn for c in found.completions]
            for adapter in (POLICY, ANCHOR):
                with torch.no_grad(), pair.using(adapter) as model:
                    own = [float(t.sum()) for t in token_logprobs(model, rows)]
                off = max(abs(a - b) for a, b in zip(own, reported, strict=True))
                assert (off < TOLERANCE_NATS) == (adapter == name)
        scored = await parts.engine.token_logprobs(
            POLICY, rows[0].prompt_token_ids, [rows[0].completion_token_ids]
        )
        with torch.no_grad(), pair.using(POLICY) as model:
            own = token_logprobs(model, rows[:1])[0].tolist()
        assert scored[0] == pytest.approx(own, abs=TOLERANCE_NATS)


async def test_what_is_published_is_never_older_than_the_bound(
    tiny_policy_path: Path, tmp_path: Path, policy_url: str
) -> None:
    config = served(
        tmp_path,
        tiny_policy_path,
        policy_url,
        rollouts={"max_staleness": 3, "mismatch_alarm_nats": 1e-7},
        evaluation={"every_steps": 6, "num_prompts": 8, "min_prompts": 8},
    )
    seen: list[TrainingRecord] = []
    await run_training(
        config, prompts_file=prompts_file(tmp_path), max_steps=10, on_progress=seen.append
    )
    rows = steps_of(config)
    # before step 4 of the updates, and for the evaluation at 6, which leaves nothing to do at 7
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3]
    published = [row["step"] for row in rows if row["seconds/publish"] > 0]
    assert published == [1, 5, 7]
    for row in rows:
        stale = row["rollout/staleness"] > 0
        assert (row["train/mismatch_k3"] > 1e-7) == stale
        assert (row["train/importance_ratio_mean"] == pytest.approx(1, abs=1e-5)) != stale
    errors = {record.error for record in seen}
    assert any(error and "updates old" in error for error in errors)
    assert None in errors


async def test_what_a_killed_trainer_left_is_removed(
    tiny_policy_path: Path, tmp_path: Path, policy_url: str
) -> None:
    config = served(tmp_path, tiny_policy_path, policy_url)
    async with open_parts(config, prompts_file(tmp_path)) as parts:
        await parts.publisher.publish()
        publisher: Any = parts.publisher
        publisher._folder = None  # as if it had no time to tidy up
        publisher.engine.point({})
        publisher._drop_all_but_published = _nothing
    left = {name for name in names_on(policy_url) if name.startswith((POLICY, ANCHOR))}
    [folder] = config.adapters_dir.glob(".rollouts/*")
    assert len(left) == 2
    (folder.parent / "half" / POLICY).mkdir(parents=True)
    async with open_parts(config, prompts_file(tmp_path)):
        assert not left & names_on(policy_url)
        assert not list(config.adapters_dir.glob(".rollouts/*"))


async def _nothing() -> None:
    pass


async def test_a_server_that_is_restarted_is_waited_for(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """Killed, with requests in flight: its successor gets the adapters again, the same prompts are
    asked again, and no step is lost."""
    port = free_port()
    argv = serve_command(tiny_policy_path, port, *POLICY_FLAGS, "--served-model-name", "tiny")
    config = served(
        tmp_path,
        tiny_policy_path,
        f"http://127.0.0.1:{port}",
        poll_s=0.2,
        evaluation={"every_steps": 100, "num_prompts": 8, "min_prompts": 8},
    )
    seen: list[TrainingRecord] = []
    reached, away = asyncio.Event(), asyncio.Event()

    def watch(record: TrainingRecord) -> None:
        seen.append(record)
        if record.step >= 1:
            reached.set()
        if record.error and record.error.startswith("waiting for servers"):
            away.set()

    log = tmp_path / "server.log"
    first = start_server(argv, POLICY_ENVIRONMENT, port, log)
    server = await asyncio.to_thread(first.__enter__)
    training = asyncio.create_task(
        run_training(config, prompts_file=prompts_file(tmp_path), max_steps=12, on_progress=watch)
    )
    try:
        await first_of(reached.wait(), training)
        os.killpg(server.process.pid, signal.SIGKILL)
    finally:
        await asyncio.to_thread(first.__exit__, None, None, None)
    await first_of(away.wait(), training)
    second = start_server(argv, POLICY_ENVIRONMENT, port, log)
    await asyncio.to_thread(second.__enter__)
    try:
        await training
    finally:
        await asyncio.to_thread(second.__exit__, None, None, None)
    assert (seen[-1].state, seen[-1].step, seen[-1].error) == ("stopped", 12, None)
    assert [row["step"] for row in steps_of(config)] == list(range(1, 13))
    assert seen[-1].counts["used"] == 12 * 16
    assert "waiting" in {record.state for record in seen}


async def first_of(event: Awaitable[object], training: "asyncio.Task[None]") -> None:
    """Until the event; a training that ends before it has failed."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait({waiting, training}, return_when=asyncio.FIRST_COMPLETED)
    if training.done():
        waiting.cancel()
        await training
        raise AssertionError("the training ended first")


async def test_everything_it_asks_for_has_a_low_priority(
    tiny_policy_path: Path, tmp_path: Path, policy_url: str
) -> None:
    """Rollouts, evaluation and scoring, as they arrive at a proxy before the server."""
    asked: list[tuple[str, dict[str, Any]]] = []
    async with recording_proxy(policy_url, asked) as url:
        config = served(
            tmp_path,
            tiny_policy_path,
            url,
            evaluation={"every_steps": 100, "num_prompts": 8, "min_prompts": 8},
        )
        await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=2)
    first = next(i for i, (_, body) in enumerate(asked) if is_learners(body))
    training = asked[first:]  # before it, the engine tried out what the server can do
    assert {path for path, _ in training} == {"/v1/chat/completions", "/v1/completions"}
    models = {body["model"].partition("-")[0] for _, body in training}
    assert models == {POLICY, ANCHOR, "v0000"}
    assert len(training) > 2 * 2 * 16
    assert {body.get("priority") for _, body in training} == {BACKGROUND_PRIORITY}


def is_learners(body: dict[str, Any]) -> bool:
    return str(body.get("model", "")).startswith((POLICY, ANCHOR))


@asynccontextmanager
async def recording_proxy(
    server: str, asked: list[tuple[str, dict[str, Any]]]
) -> AsyncIterator[str]:
    """URL of a proxy that notes the path and body of every completion that is asked for."""
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            data = await request.read()
            if request.path.endswith("completions"):
                asked.append((request.path, json.loads(data)))
            headers = {"content-type": "application/json"} if data else {}
            async with session.request(
                request.method, server + request.path, data=data or None, headers=headers
            ) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type=answer.content_type,
                )

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
        await runner.cleanup()
