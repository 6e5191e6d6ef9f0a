"""One prompt, several arms: answered at once, scored alike, each recorded."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from disconnecting import disconnecting_post
from held_engine import Held
from running_gateway import MODEL, MakeConfig, Run, eventually, row_id, scorer, settled
from stored import all_rows

from bond_core.engines.fake import FakeEngine
from bond_core.types import Arm


async def test_both_arms_answer_and_are_scored_by_the_same_scorer(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        body = (await running.post("/v1/compare", user="alice")).json()
        rows = [await running.gateway.store.completions.get(row_id(arm)) for arm in body["arms"]]
    assert body["object"] == "bond.comparison"
    assert body["model"] == MODEL
    bon, distilled = body["arms"]
    assert (bon["arm"], bon["best_of"], bon["strategy"]) == ("bon", 4, "best_of_n")
    assert (distilled["arm"], distilled["best_of"], distilled["strategy"]) == (
        "distilled",
        1,
        "single",
    )
    for arm, row in zip(body["arms"], rows, strict=True):
        assert row is not None
        assert arm["score"] == float(len(arm["text"])) == row.score
        assert arm["version"] == row.version == "v0000"
        assert arm["tokens"] == sum(len(c.completion.token_ids) for c in row.candidates)
        assert row.unit == "alice"
        assert row.requested_model == f"{MODEL}:{arm['arm']}"
    assert bon["tokens"] > distilled["tokens"]
    assert rows[0] is not None
    assert bon["score"] == max(c.score for c in rows[0].candidates if c.score is not None)


async def test_each_arm_is_timed_alone(run: Run, make_config: MakeConfig) -> None:
    config = make_config(engine={"type": "fake", "delay_s": 0.2})
    async with run(config) as running:
        engine = running.gateway.engine
        assert isinstance(engine, FakeEngine)
        most, work = 0, engine._work

        async def watched(seconds: float) -> None:
            nonlocal most
            most = max(most, engine.in_progress)
            await work(seconds)

        engine._work = watched  # type: ignore[method-assign]
        started = time.perf_counter()
        body = (await running.post("/v1/compare", arms=["reference", "bon", "distilled"])).json()
        elapsed_s = time.perf_counter() - started
    assert [arm["arm"] for arm in body["arms"]] == ["reference", "bon", "distilled"]
    assert most == 4  # Best-of-4's own candidates, and nobody else's
    assert all(arm["latency_ms"] >= 200 for arm in body["arms"])
    assert sum(arm["latency_ms"] for arm in body["arms"]) / 1e3 <= elapsed_s


async def test_arms_named_in_the_body(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        body = (await running.post("/v1/compare", arms=["distilled@v0", "bon"], best_of=2)).json()
        assert await running.gateway.store.completions.count() == 2
    assert [(a["arm"], a["version"], a["best_of"]) for a in body["arms"]] == [
        ("distilled@v0", "v0000", 1),
        ("bon", "v0000", 2),
    ]


async def test_a_scorer_that_fails_leaves_the_answers_without_scores(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "raises"))) as running:
        response = await running.post("/v1/compare")
        await settled(running)
    assert response.status_code == 200
    assert [arm["score"] for arm in response.json()["arms"]] == [None, None]
    assert response.json()["arms"][0]["degraded"] == "scoring_failed"
    assert all(arm["text"] for arm in response.json()["arms"])


async def test_a_failing_engine_fails_the_comparison_and_counts_in_both_arms(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        await running.gateway.engine.close()
        response = await running.post("/v1/compare")
        arms = {s.arm: s for s in await running.gateway.store.completions.summarise()}
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert (arms[Arm.BON].failed, arms[Arm.DISTILLED].failed) == (1, 1)


@pytest.mark.parametrize("where", ["drawing", "commit"])
async def test_who_leaves_in_the_second_arm_leaves_no_row_unmeasured(
    where: str, run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config()) as running:
        engine: Any = running.gateway.engine
        Held(engine, let_go=1 if where == "drawing" else 2)
        recording: Any = running.gateway.generation._recording
        commit, begun, go_on = recording.commit, list[str](), asyncio.Event()

        async def slow(record: Any, settlement: Any = None) -> None:
            begun.append(record.id)
            if where == "commit" and len(begun) == 2:
                await go_on.wait()
            await commit(record, settlement)

        async def in_the_second_arm() -> bool:
            at_work = engine.in_progress == 1 and len(begun) == 1
            return at_work if where == "drawing" else len(begun) == 2

        monkeypatch.setattr(recording, "commit", slow)
        body = {
            "messages": [{"role": "user", "content": "hi"}],
            "arms": ["reference", "distilled"],
        }
        sent = await disconnecting_post(
            running, "/v1/compare", eventually(in_the_second_arm), asked=body
        )
        assert sent[0]["status"] == 499
        go_on.set()
        answered = 1 if where == "drawing" else 2

        async def measured() -> bool:
            rows = await all_rows(running.gateway.store)
            return sum(row.score is not None for row in rows) == answered

        await eventually(measured)
        await settled(running)
        statuses = sorted(row.status for row in await all_rows(running.gateway.store))
        assert statuses == (["cancelled", "ok"] if where == "drawing" else ["ok", "ok"])
        assert running.gateway.after_answer._pending == set()


async def test_an_arm_is_not_refused_after_another_was_drawn(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(admission={"max_rows": 4, "max_waiting_rows": 3})
    async with run(config) as running:
        engine, admission = Held(running.gateway.engine), running.gateway.admission

        async def has_places() -> bool:
            return admission.running_rows == 4

        async def one_waits() -> bool:
            return admission.waiting_rows == 1

        async def the_large_one_waits() -> bool:
            return admission.waiting_rows == 1 + 4

        async def the_second_arm_waits() -> bool:
            return (admission.running_rows, admission.waiting_rows) == (1, 4 + 1)

        arms = {"arms": ["bon", "distilled"], "best_of": 4}
        asking = asyncio.create_task(running.post("/v1/compare", **arms))
        await eventually(has_places)
        # while the second arm wants its place, the queue is full of the larger one of these
        others = [asyncio.create_task(running.post("/v1/distilled"))]
        await eventually(one_waits)
        others.append(asyncio.create_task(running.post("/v1/best-of-n", best_of=4)))
        await eventually(the_large_one_waits)
        engine.let_go(4)
        await eventually(the_second_arm_waits)
        await asyncio.sleep(0.1)
        engine.let_go()
        responses = await asyncio.gather(asking, *others)
    assert [response.status_code for response in responses] == [200, 200, 200]
    _, second = responses[0].json()["arms"]
    assert second["timings"]["queue_ms"] >= 100  # behind the larger one
