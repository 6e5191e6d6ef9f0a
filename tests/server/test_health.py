"""Is the process up, can it answer, and what does the trainer do?"""

import math
import time

import pytest
from running_gateway import MakeConfig, Run, settled

from bond_core.holdout import Split
from bond_core.store import EvaluationRecord, TrainingRecord


async def test_up_and_ready(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        assert (await running.client.get("/healthz")).json() == {"status": "ok"}
        ready = await running.client.get("/readyz")
        heads = [await running.client.head(path) for path in ("/healthz", "/readyz")]
    assert [head.status_code for head in heads] == [200, 200]
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "engine": "ok",
        "scorer": "started",
        "store": "ok",
        "active": "v0000",
    }


async def test_not_ready_names_the_part(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        await running.gateway.engine.close()
        response = await running.client.get("/readyz")
        assert (await running.client.get("/healthz")).status_code == 200
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "not_ready"
    assert "engine" in error["message"]
    assert "store" not in error["message"]


async def test_training_without_a_trainer(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        body = (await running.client.get("/v1/training")).json()
    assert body == {
        "object": "bond.training",
        "run": None,
        "active": "v0000",
        "evaluations": [],
        "arms": [],
    }


@pytest.mark.parametrize(
    ("state", "age_s", "stale"),
    [("training", 1.0, False), ("training", 600.0, True), ("stopped", 600.0, False)],
)
async def test_the_trainers_last_report(
    run: Run, make_config: MakeConfig, state: str, age_s: float, stale: bool
) -> None:
    now = time.time()
    async with run(make_config()) as running:
        await running.gateway.store.training.report(
            TrainingRecord(
                run_id="run-1",
                state=state,  # type: ignore[arg-type]
                step=40,
                started_at=now - 900,
                heartbeat_at=now - age_s,
                metrics={"train/loss": 0.5, "train/odd": math.nan},
                counts={"used": 12},
            )
        )
        run_view = (await running.client.get("/v1/training")).json()["run"]
    assert run_view["run_id"] == "run-1"
    assert (run_view["state"], run_view["step"], run_view["stale"]) == (state, 40, stale)
    assert run_view["metrics"] == {"train/loss": 0.5, "train/odd": None}
    assert run_view["counts"] == {"used": 12}


async def test_evaluations_and_arms(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        for step in (10, 20, 30):
            await running.gateway.store.evaluations.insert(
                EvaluationRecord(
                    version="v0001",
                    step=step,
                    split=Split.GATE,
                    created_at=time.time(),
                    metrics={"reward_mean": step / 10},
                )
            )
        for _ in range(3):
            await running.post("/v1/distilled")
        await running.post("/v1/best-of-n")
        await settled(running)
        body = (await running.client.get("/v1/training?evaluations=2")).json()
        later = (await running.client.get(f"/v1/training?since={time.time() + 9}")).json()
    assert [e["step"] for e in body["evaluations"]] == [30, 20]
    assert body["evaluations"][0]["metrics"] == {"reward_mean": 3.0}
    arms = {arm["arm"]: arm for arm in body["arms"]}
    assert (arms["distilled"]["requests"], arms["distilled"]["failed"]) == (3, 0)
    assert arms["distilled"]["log_ratio_mean"] == 0.0
    assert arms["bon"]["log_ratio_mean"] is None
    assert arms["bon"]["tokens_per_answer"] > arms["distilled"]["tokens_per_answer"]
    assert arms["bon"]["latency_p50_ms"] > 0
    assert later["arms"] == []
