"""An answer is sent after its row is committed; failures and cancellations are rows too."""

import asyncio
import sqlite3
from typing import Any

import pytest
from disconnecting import disconnecting_post
from held_engine import Held
from locked_store import locked, row_is_recorded
from running_gateway import MakeConfig, Run, Running, eventually, row_id, settled

from bond_core.errors import EngineUnavailableError
from bond_core.types import Arm, Completion, Generation


async def test_the_answer_waits_for_its_row(run: Run, make_config: MakeConfig) -> None:
    config = make_config(server={"policy_poll_s": 60})
    async with run(config) as running:
        store = running.gateway.store
        recorded = row_is_recorded(store)
        with locked(store) as other:
            asking = asyncio.create_task(running.post("/v1/best-of-n"))
            await recorded.wait()
            await asyncio.sleep(0.3)
            assert not asking.done()
            other.execute("COMMIT")
            response = await asking
            assert response.status_code == 200
            assert float(response.headers["x-bond-overhead-ms"]) > 200
            # another connection sees the row that was acknowledged
            [found] = other.execute("SELECT id, status FROM completions").fetchall()
            assert found == (row_id(response.json()), "ok")


async def test_a_store_that_cannot_commit_is_a_503_and_no_answer(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(server={"policy_poll_s": 60})) as running:
        with locked(running.gateway.store, commit_timeout_s=0.3):
            response = await running.post("/v1/best-of-n")
        error = response.json()["error"]
        assert response.status_code == 503
        assert error["code"] == "store_unavailable"
        assert "choices" not in response.json()
        assert running.metric("bond_requests_total", arm="bon", status="failed") == 1
        assert running.metric("bond_log_rows_total", arm="bon", status="ok") == 0
        assert (await running.post("/v1/best-of-n")).status_code == 200


async def test_an_answer_that_no_row_can_keep_is_counted_as_failed(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:

        async def generate(*_: object) -> Generation:
            return Generation((1,), (Completion("a", (2**40,), (-0.5,), "stop"),))

        running.gateway.engine.generate = generate  # type: ignore[method-assign]
        assert (await running.post("/v1/distilled")).status_code == 500
        assert running.metric("bond_requests_total", arm="distilled", status="failed") == 1
        assert running.metric("bond_requests_total", arm="distilled", status="ok") == 0


async def test_an_engine_failure_is_a_503_and_a_failed_row_of_its_arm(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        await running.gateway.engine.close()
        response = await running.post("/v1/best-of-n")
        [summary] = await running.gateway.store.completions.summarise()
        record = await only_row(running)
        assert running.metric("bond_requests_total", arm="bon", status="failed") == 1
        assert running.metric("bond_log_rows_total", arm="bon", status="failed") == 1
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert (summary.arm, summary.requests, summary.failed) == (Arm.BON, 1, 1)
    assert (record["status"], record["may_train"]) == ("failed", 0)
    assert record["error"].startswith("EngineUnavailableError: ")


async def test_a_client_that_goes_away_cancels_and_leaves_a_row(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        engine: Any = running.gateway.engine
        Held(engine)

        async def at_work_for_a_while() -> None:
            await eventually(at_work)
            await asyncio.sleep(0.1)

        async def at_work() -> bool:
            return engine.in_progress == 4

        sent = await disconnecting_post(running, "/v1/best-of-n", at_work_for_a_while())
        assert engine.in_progress == 0
        await settled(running)
        record = await only_row(running)
        assert running.metric("bond_requests_total", arm="bon", status="cancelled") == 1
        assert running.metric("bond_in_flight_requests") == 0
    assert sent[0]["status"] == 499
    assert (record["status"], record["arm"], record["may_train"]) == ("cancelled", "bon", 0)
    assert 0.1 <= record["latency_s"] < 60.0


async def test_a_client_that_leaves_during_the_commit_leaves_an_answered_row(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(server={"policy_poll_s": 60})
    async with run(config) as running:
        recorded = row_is_recorded(running.gateway.store)
        with locked(running.gateway.store):
            await disconnecting_post(running, "/v1/distilled", recorded.wait())
        await settled(running)
        record = await only_row(running)
        assert running.metric("bond_requests_total", arm="distilled", status="ok") == 1
        assert running.metric("bond_log_rows_total", arm="distilled", status="ok") == 1
    assert record["status"] == "ok"
    assert record["score"] is not None


async def test_a_client_that_leaves_as_its_failure_is_recorded_leaves_a_failed_row(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(server={"policy_poll_s": 60})
    async with run(config) as running:
        running.gateway.engine.failure = EngineUnavailableError("away")  # type: ignore[attr-defined]
        recorded = row_is_recorded(running.gateway.store)
        with locked(running.gateway.store):
            await disconnecting_post(running, "/v1/distilled", recorded.wait())
        await settled(running)
        record = await only_row(running)
        assert running.metric("bond_requests_total", arm="distilled", status="failed") == 1
        assert running.metric("bond_log_rows_total", arm="distilled", status="failed") == 1
    assert record["status"] == "failed"


async def test_without_content_only_numbers_are_kept(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(server={"log_content": False})) as running:
        body = (await running.post("/v1/best-of-n")).json()
        single = (await running.post("/v1/distilled")).json()
        await settled(running)
        bon = await running.gateway.store.completions.get(row_id(body))
        distilled = await running.gateway.store.completions.get(row_id(single))
        summaries = {s.arm: s for s in await running.gateway.store.completions.summarise()}
    assert bon is not None
    assert distilled is not None
    for row in (bon, distilled):
        assert row.messages == ()
        assert not row.may_train
        assert {c.completion.text for c in row.candidates} == {""}
        assert {t for c in row.candidates for t in c.completion.token_ids} == {0}
        assert set(row.prompt_token_ids) == {0}
    text = body["choices"][0]["message"]["content"]
    assert bon.score == float(len(text)) > 0
    assert distilled.score == float(len(single["choices"][0]["message"]["content"]))
    assert summaries[Arm.BON].tokens_per_answer == body["usage"]["completion_tokens"]


async def test_rows_survive_a_restart(run: Run, make_config: MakeConfig) -> None:
    config = make_config()
    async with run(config) as running:
        first = (await running.post("/v1/distilled")).json()
    async with run(config) as running:
        assert await running.gateway.store.completions.get(row_id(first)) is not None
        await running.post("/v1/distilled")
        assert await running.gateway.store.completions.count() == 2


@pytest.mark.parametrize("path", ["/v1/best-of-n", "/v1/distilled", "/v1/compare"])
async def test_every_answer_is_one_row_per_arm(
    run: Run, make_config: MakeConfig, path: str
) -> None:
    async with run(make_config()) as running:
        await asyncio.gather(*(running.post(path) for _ in range(20)))
        rows = await running.gateway.store.completions.count()
        summaries = await running.gateway.store.completions.summarise()
        for summary in summaries:
            arm = summary.arm.value
            assert running.metric("bond_requests_total", arm=arm, status="ok") == 20
            assert running.metric("bond_log_rows_total", arm=arm, status="ok") == 20
    assert rows == (40 if path == "/v1/compare" else 20)


async def only_row(running: Running) -> dict[str, Any]:
    """The log's one row, as SQLite holds it."""
    connection = sqlite3.connect(running.gateway.config.data_dir / "bond.db")
    connection.row_factory = sqlite3.Row
    try:
        [row] = connection.execute("SELECT * FROM completions").fetchall()
        return dict(row)
    finally:
        connection.close()
