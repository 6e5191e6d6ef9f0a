"""Streams that do not end as they should: errors, a store that is away, deadlines."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from failing_servers import until
from held_engine import Held
from locked_store import locked
from running_gateway import MODEL, MakeConfig, eventually
from served_gateway import HI, Serve, Served, Told, frames, told

from bond_core.errors import EngineUnavailableError

CHAT = "/v1/chat/completions"
SINGLE = {"model": f"{MODEL}:reference", "messages": HI, "seed": 7}
SELECTION = {"model": f"{MODEL}:bon", "messages": HI, "seed": 7, "best_of": 3}
BOTH = pytest.mark.parametrize("body", [SINGLE, SELECTION], ids=["single", "selection"])


def fake(**fields: Any) -> dict[str, Any]:
    return {"type": "fake", **fields}


@BOTH
async def test_an_error_before_the_first_event_has_its_status(
    body: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:
        served.engine.failure = EngineUnavailableError("the engine is away")
        response = await served.client.post(CHAT, json={**body, "stream": True})
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"] == {
            "message": "the engine is away",
            "type": "server_error",
            "param": None,
            "code": "engine_unavailable",
        }
        response = await served.client.post(CHAT, json={**body, "stream": True, "best_of": 99})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")


@BOTH
async def test_an_error_in_mid_stream_is_the_last_event(
    body: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    config = make_config(engine=fake(delay_s=20), server={"keep_alive_s": 0.05})
    arm = body["model"].rpartition(":")[2]
    async with serve(config) as served:
        sent: list[str] = []
        async with served.client.stream("POST", CHAT, json={**body, "stream": True}) as response:
            assert response.status_code == 200
            async for frame in frames(response):
                sent.append(frame)
                await served.engine.close()
        answer = Told(response.headers, sent)
        assert not answer.done
        assert answer.chunks[-1] == {
            "error": {
                "message": "the fake engine was closed while the request ran",
                "type": "server_error",
                "param": None,
                "code": "engine_unavailable",
            }
        }
        assert all(choice["finish_reason"] is None for choice in answer.choices())
        assert served.metric("bond_log_rows_total", arm=arm, status="failed") == 1
        assert served.engine.in_progress == 0


async def test_an_unexpected_error_in_mid_stream_names_the_request(
    serve: Serve, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr("bond_server.forms.chat.ChatForm.closing", broken)
    async with (
        serve(make_config()) as served,
        served.client.stream(
            "POST", CHAT, json={**SINGLE, "stream": True}, headers={"x-request-id": "find-me"}
        ) as response,
    ):
        answer = Told(response.headers, [frame async for frame in frames(response)])
    error = answer.chunks[-1]["error"]
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert "find-me" in error["message"]
    assert "a defect of ours" not in str(answer.frames)
    assert not answer.done


async def test_an_answer_whose_row_is_not_committed_is_not_finished(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config(server={"keep_alive_s": 0.05})) as served:
        with locked(served.gateway.store, commit_timeout_s=0.3):
            single = await told(served, CHAT, **SINGLE)
            selection = await told(served, CHAT, **SELECTION)
        assert single.text() != ""  # it was on its way already
        assert selection.text() == ""
        for answer in (single, selection):
            assert answer.chunks[-1]["error"]["code"] == "store_unavailable"
            assert all(choice["finish_reason"] is None for choice in answer.choices())
            assert not answer.done
        assert (await told(served, CHAT, **SINGLE)).done  # the store is back
        assert served.metric("bond_requests_total", arm="reference", status="ok") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_gives_the_best_of_the_candidates_that_ended(
    stream: bool, serve: Serve, make_config: MakeConfig
) -> None:
    body = SELECTION | {
        "best_of": 16,
        "bond": {"deadline_ms": 3000, "return_candidates": True},
    }
    async with serve(make_config(engine=fake(capacity=1))) as served:
        Held(served.engine, let_go=5)  # of sixteen, one after another
        # half of the time is for scoring, as where it has taken long lately
        served.gateway.generation._scoring_time.observe(60.0)
        if stream:
            answer = await told(served, CHAT, **body)
            assert answer.done
            bond, text = answer.chunks[-1]["bond"], answer.text()
        else:
            response = await served.client.post(CHAT, json=body)
            assert response.headers["x-bond-degraded"] == "deadline"
            bond = response.json()["bond"]
            text = response.json()["choices"][0]["message"]["content"]
        assert served.engine.in_progress == 0  # the others were given up
        assert served.engine.drawn == 5
    assert bond["degraded"] == "deadline"
    candidates = bond["candidates"]
    assert [c["index"] for c in candidates] == [0, 1, 2, 3, 4]
    best = max(candidates, key=lambda c: c["score"])
    assert (bond["score"], text) == (best["score"], best["text"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_before_the_first_candidate_is_a_504(
    stream: bool, serve: Serve, make_config: MakeConfig
) -> None:
    body = SELECTION | {"bond": {"deadline_ms": 50}, "stream": stream}
    async with serve(make_config(engine=fake(delay_s=30))) as served:
        response = await served.client.post(CHAT, json=body)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert served.engine.in_progress == 0
        assert served.metric("bond_log_rows_total", arm="bon", status="failed") == 1


async def test_a_deadline_that_comes_in_the_queue_is_not_waited_past(
    serve: Serve, make_config: MakeConfig
) -> None:
    config = make_config(engine=fake(delay_s=30), admission={"max_rows": 3, "max_waiting_rows": 9})
    async with serve(config) as served:
        first = asyncio.create_task(served.client.post(CHAT, json=SELECTION))

        async def at_work() -> bool:
            return served.engine.in_progress == 3

        await eventually(at_work)
        started = time.monotonic()
        response = await served.client.post(CHAT, json=SELECTION | {"bond": {"deadline_ms": 100}})
        assert time.monotonic() - started < 25  # the queue's own limit is longer
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_timeout"
        assert "the request's deadline" in response.json()["error"]["message"]
        first.cancel()
        await asyncio.wait({first})


PROMPTS = {"model": f"{MODEL}:reference", "prompt": ["a", "b"]}
ALL = pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, SINGLE), (CHAT, SELECTION), ("/v1/completions", PROMPTS)],
    ids=["single", "selection", "prompts"],
)


@asynccontextmanager
async def full(
    serve: Serve, make_config: MakeConfig, max_wait_s: float
) -> AsyncGenerator[tuple[Served, Held, asyncio.Task[httpx.Response]]]:
    """A gateway whose places are all taken, by a request that the engine holds."""
    waits = {"max_rows": 3, "max_waiting_rows": 20, "max_wait_s": max_wait_s}
    config = make_config(admission=waits, server={"keep_alive_s": 0.02})
    async with serve(config) as served:
        engine = Held(served.engine)
        first = asyncio.create_task(served.client.post(CHAT, json=SELECTION))
        await until(lambda: served.gateway.admission.running_rows == 3)
        yield served, engine, first


@ALL
async def test_a_stream_that_has_waited_too_long_is_a_429_and_no_event(
    path: str, body: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    async with full(serve, make_config, max_wait_s=0.2) as (served, engine, first):
        refused = await served.client.post(path, json={**body, "stream": True})
        engine.let_go()
        assert (await first).status_code == 200
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_timeout"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-should-retry"] == "true"


@ALL
async def test_a_stream_is_kept_alive_from_when_it_has_its_places(
    path: str, body: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    async with full(serve, make_config, max_wait_s=60) as (served, engine, first):
        begun, sent = asyncio.Event(), list[str]()

        async def read() -> None:
            asked = {**body, "stream": True}
            async with served.client.stream("POST", path, json=asked) as response:
                begun.set()
                async for frame in frames(response):
                    sent.append(frame)
                    engine.let_go()

        reading = asyncio.create_task(read())
        await until(lambda: served.gateway.admission.waiting_rows > 0)
        await asyncio.sleep(0.1)
        assert not begun.is_set()
        engine.let_go(3)
        await reading
        assert (await first).status_code == 200
    assert sent[0] == ": keep-alive"
    assert sent[-1] == "data: [DONE]"
