"""The whole demo in one process: real gateway, store, users and report over the fake engine."""

import asyncio
import io
import json
import time
from pathlib import Path

import pytest
import uvicorn
from rich.console import Console
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bond_core.config import BondConfig, load_config
from bond_core.store import open_store
from bond_core.store.records import PolicyRecord, TrainingRecord
from bond_core.types import PolicyState
from bond_demo.driver import _adopted, run_demo
from bond_demo.report import Report
from bond_demo.seeding import seed_log
from bond_demo.settings import DemoSettings, demo_config
from bond_server.app import create_app
from bond_server.serving import claim_socket


class InProcessService:
    """The gateway in this event loop, and no trainer."""

    def __init__(self, config: BondConfig) -> None:
        self._listener = claim_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._app = create_app(config)
        self._config = config
        settings = uvicorn.Config(self._answer, interface="asgi3", lifespan="on", log_config=None)
        self._server = uvicorn.Server(settings)
        self._serving: asyncio.Task[None] | None = None
        self.fails_after: int | None = None
        self.checks = 0
        self.refuses_every: int | None = None
        """Requests that get a 503 before the gateway sees them, as if the log were full."""
        self.refused = 0
        self.trains_to: int | None = None
        """Step that a trainer reports at the end."""
        self._asked = 0

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._asked += 1
            if self.refuses_every is not None and self._asked % self.refuses_every == 0:
                self.refused += 1
                await Response('{"error": {"message": "log full"}}', 503)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def start(self) -> None:
        self._serving = asyncio.create_task(self._server._serve([self._listener]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)

    def check(self) -> None:
        self.checks += 1
        if self.fails_after is not None and self.checks > self.fails_after:
            raise RuntimeError("the gateway ended: out of memory")

    async def stop_trainer(self) -> None:
        """There is none."""

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        if self.trains_to is not None:
            await report_step(self._config, self.trains_to)


async def report_step(config: BondConfig, step: int) -> None:
    """What a trainer says of itself in the store."""
    store = await open_store(config.store_url)
    await store.training.report(
        TrainingRecord(
            run_id="run",
            state="training",
            step=step,
            started_at=time.time(),
            heartbeat_at=time.time(),
        )
    )
    await store.close()


@pytest.fixture
def config(tmp_path: Path) -> BondConfig:
    flags = demo_config(tmp_path / "data") | {
        "engine": {"type": "fake"},
        "scorer": {"type": "function", "function": "bond_demo.settings:gold_rewards"},
        "judge": None,
    }
    return load_config(flags=flags, environ={})


def make_settings(tmp_path: Path, duration_s: float) -> DemoSettings:
    return DemoSettings(
        duration_s=duration_s,
        results_dir=tmp_path / "results",
        rate_per_s=60.0,
        evaluation_prompts=20,
    )


async def test_a_run_without_a_trainer_ends_with_all_files_and_says_so(
    config: BondConfig, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), record=True, width=120)
    began = time.monotonic()
    service = InProcessService(config)
    await run_demo(config, make_settings(tmp_path, 2.5), service, began, console)
    text = console.export_text()
    assert "seeded the log with" in text
    assert "bondserve demo · " in text
    assert "no version was promoted" in text
    assert service.checks >= 2
    results = tmp_path / "results"
    report = Report.model_validate(json.loads((results / "report.json").read_text()))
    assert (report.bon_n, report.promotions, report.versions) == (8, 0, [])
    assert all(arm.traffic.failed == 0 for arm in report.arms.values())
    assert min(arm.traffic.requests for arm in report.arms.values()) > 0
    assert report.arms["distilled"].traffic.reward_mean is None
    assert report.arms["reference"].evaluation.samples == 20 * 16
    assert report.arms["distilled"].evaluation.kl_nats == 0.0
    assert report.seconds_to_first_answer is not None
    assert 0 < report.seconds_to_first_answer < time.monotonic() - began
    assert report.seconds_to_first_promotion is None
    assert (results / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "final evaluation: 20 held-out prompts" in (results / "table.txt").read_text()


async def test_refused_requests_count_as_failed_and_steps_of_earlier_runs_do_not(
    config: BondConfig, tmp_path: Path
) -> None:
    await seed_log(config)
    await report_step(config, 7)
    console = Console(file=io.StringIO(), record=True, width=120)
    service = InProcessService(config)
    service.refuses_every, service.trains_to = 4, 12
    await run_demo(config, make_settings(tmp_path, 1.5), service, time.monotonic(), console)
    report = Report.model_validate_json((tmp_path / "results" / "report.json").read_text())
    assert report.training_steps == 5
    assert service.refused >= 2
    assert {name: arm.traffic.failed for name, arm in report.arms.items()} == {
        "reference": 0, "bon": 0, "distilled": service.refused,
    }  # fmt: skip
    requests = sum(arm.traffic.requests for arm in report.arms.values())
    assert requests == service._asked
    text = " ".join((tmp_path / "results" / "table.txt").read_text().split())
    assert f"{service.refused} of {requests} requests failed, {service.refused} of them" in text
    assert f"{service.refused} requests failed: log full (HTTP 503)" in console.export_text()


async def test_a_second_run_goes_on_with_the_log_and_a_dead_gateway_ends_it(
    config: BondConfig, tmp_path: Path
) -> None:
    assert await seed_log(config) > 1000
    assert await seed_log(config) == 0
    console = Console(file=io.StringIO(), record=True, width=120)
    service = InProcessService(config)
    service.fails_after = 0
    with pytest.raises(RuntimeError, match="the gateway ended: out of memory"):
        await run_demo(config, make_settings(tmp_path, 60.0), service, time.monotonic(), console)
    assert f"going on with the log in {config.data_dir}" in console.export_text().replace("\n", "")
    assert not (tmp_path / "results").exists()


async def test_the_end_waits_until_the_last_challenger_is_taken_up(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path / 'bond.db'}")
    try:
        now = time.time()
        await store.policies.insert(
            PolicyRecord(
                version="v0001",
                state=PolicyState.CHALLENGER,
                path="",
                parent="v0000",
                step=1,
                created_at=now,
                updated_at=now,
            )
        )
        waiting = asyncio.create_task(_adopted(store))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await store.policies.activate("v0001", "loaded and probed")
        await asyncio.wait_for(waiting, 60)
    finally:
        await store.close()
