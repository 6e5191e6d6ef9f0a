"""Admission as clients meet it: who is refused, what is said, and what who waited is told."""

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest
from disconnecting import disconnecting_post
from held_engine import Held
from running_gateway import MakeConfig, Run, Running, eventually, row_id

from bond_server.loop_lag import LoopLag


async def timed_post(running: Running) -> tuple[httpx.Response, float]:
    """An answer, and the seconds that its client waited for it."""
    began = time.perf_counter()
    answer = await running.post("/v1/best-of-n")
    return answer, time.perf_counter() - began


async def test_over_http(run: Run, make_config: MakeConfig) -> None:
    """Two Best-of-4 fit, one waits, the next is told to come back; what waited says how long."""
    config = make_config(admission={"max_rows": 8, "max_waiting_rows": 4})
    async with run(config) as running:
        admission, engine = running.gateway.admission, Held(running.gateway.engine)
        asking = [asyncio.create_task(timed_post(running)) for _ in range(3)]
        await until(lambda: admission.waiting_rows == 4)
        assert running.metric("bond_running_rows") == 8
        assert running.metric("bond_waiting_rows") == 4
        assert running.metric("bond_waiting_requests") == 1
        refused = await running.post("/v1/distilled")
        wrong = await running.client.get("/v1/models")
        await asyncio.sleep(0.1)
        engine.let_go()
        timed = await asyncio.gather(*asking)
        answers = [answer for answer, _ in timed]
        store = running.gateway.store.completions
        rows = [await store.get(row_id(answer.json())) for answer in answers]
        assert running.metric("bond_running_rows") == 0
        assert running.metric("bond_assignments_total", arm="distilled", experiment="") == 0
        assert running.metric("bond_admission_refused_total", reason="queue_full") == 1
        assert running.metric("bond_request_queue_time_seconds_count", arm="bon") == 3
        route = {"route": "/v1/distilled", "method": "POST", "code": "429"}
        assert running.metric("bond_http_requests_total", **route) == 1
    assert wrong.status_code == 200
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert 100 <= int(refused.headers["retry-after-ms"]) <= 60_000
    assert refused.headers["x-request-id"]
    assert [answer.status_code for answer in answers] == [200] * 3
    waits = sorted(float(answer.headers["x-bond-queue-ms"]) for answer in answers)
    assert waits[:2] == [0, 0]
    assert waits[2] >= 100
    assert sorted(row.queue_s * 1000 for row in rows if row is not None) == pytest.approx(
        waits, abs=0.01
    )
    waited, elapsed_s = max(timed, key=lambda one: float(one[0].headers["x-bond-queue-ms"]))
    timings = waited.json()["bond"]["timings"]
    assert timings["queue_ms"] == pytest.approx(waits[2], abs=0.01)
    parts = [timings[f"{part}_ms"] for part in ("queue", "generate", "score", "overhead")]
    assert sum(parts) <= 1000 * elapsed_s + 0.01  # the wait is not overhead too


async def test_a_client_that_goes_away_leaves_the_queue_and_no_row(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(admission={"max_rows": 4, "max_waiting_rows": 4})
    async with run(config) as running:
        admission, engine = running.gateway.admission, Held(running.gateway.engine)
        first = asyncio.create_task(running.post("/v1/best-of-n"))
        await until(lambda: admission.running_rows == 4)

        async def waits() -> bool:
            return admission.waiting_rows == 4

        sent = await disconnecting_post(running, "/v1/best-of-n", eventually(waits))
        assert sent[0]["status"] == 499
        assert (admission.running_rows, admission.waiting_rows) == (4, 0)
        engine.let_go()
        assert (await first).status_code == 200
        await running.gateway.background.drain(60)
        assert await running.gateway.store.completions.count() == 1


async def test_too_many_requests_are_refused_unread_but_the_state_can_be_asked(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(admission={"max_requests": 2, "max_rows": 64})) as running:
        engine = Held(running.gateway.engine)
        asking = [asyncio.create_task(running.post("/v1/best-of-n")) for _ in range(2)]
        await until(lambda: running.gateway.admission.running_rows == 8)
        refused = await running.client.post("/v1/best-of-n", content=b"not read")
        elsewhere = await running.client.get("/v1/models")
        state = [await running.client.get(path) for path in ("/healthz", "/readyz", "/metrics")]
        engine.let_go()
        answers = await asyncio.gather(*asking)
        later = await running.client.get("/v1/models")
        assert running.metric("bond_admission_refused_total", reason="too_many_requests") == 2
    assert [r.status_code for r in (refused, elsewhere, later)] == [503, 503, 200]
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "1000"
    assert [answer.status_code for answer in [*state, *answers]] == [200] * 5


def hold_up(seconds: float) -> None:
    """Let the event loop do nothing else."""
    time.sleep(seconds)


async def test_work_is_refused_unread_while_the_event_loop_is_late_with_much_in_hand(
    run: Run, make_config: MakeConfig
) -> None:
    limits = {"max_requests": 20, "max_rows": 64, "max_lag_s": 0.1}
    async with run(make_config(admission=limits)) as running:
        engine = Held(running.gateway.engine)
        first = asyncio.create_task(running.post("/v1/distilled"))
        await until(lambda: running.gateway.admission.running_rows == 1)
        hold_up(0.15)  # one request in hand is no sign of too much work
        second = asyncio.create_task(running.post("/v1/distilled"))
        await until(lambda: running.gateway.admission.running_rows == 2)
        hold_up(0.15)
        late = await running.client.post("/v1/distilled", content=b"not read")
        state = await running.client.get("/v1/models")
        engine.let_go()
        answers = await asyncio.gather(first, second)
        later = await running.post("/v1/distilled")
        assert running.metric("bond_admission_refused_total", reason="behind") == 1
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "too_many_requests"
    assert "admission.max_lag_s" in late.json()["error"]["message"]
    assert late.headers["retry-after"] == "1"
    assert [answer.status_code for answer in (state, *answers, later)] == [200] * 4


async def test_the_lag_of_the_event_loop_is_known_before_the_beat_that_is_late() -> None:
    lag = LoopLag()
    assert lag.seconds == 0  # nothing beats yet
    beating = asyncio.create_task(lag.run())
    await asyncio.sleep(0.05)
    hold_up(0.2)
    assert 0.15 < lag.seconds < 5  # its beat could not run yet
    await asyncio.sleep(0)
    await until(lambda: lag.seconds < 0.1)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    assert lag.seconds == 0


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
