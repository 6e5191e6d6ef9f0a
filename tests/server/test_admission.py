"""Admission: places counted in rows, a bounded queue in order of arrival, and who leaves it."""

import asyncio
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_gateway import MakeConfig, Run, row_id

from bond_core.config import AdmissionConfig, FakeEngineConfig, LocalEngineConfig, VllmEngineConfig
from bond_core.errors import DeadlineError, OverloadedError
from bond_server.loop_lag import LoopLag
from bond_server.metrics import Metrics
from bond_server.services.admission import Admission, Line


class Holders:
    """Requests under one admission: who holds places, in the order in which they got them."""

    def __init__(self, max_rows: int, max_waiting_rows: int = 1000, max_wait_s: float = 60) -> None:
        self.metrics = Metrics()
        self.admission = Admission(max_rows, max_waiting_rows, max_wait_s, self.metrics)
        self.order: list[str] = []
        self.waited: dict[str, float] = {}
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def enter(self, name: str, rows: int, line: Line | None = None) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, rows, line))
        await turns()
        return self._tasks[name]

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await turns()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})
        await turns()

    def refused(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "bond_admission_refused_total", {"reason": reason}
        )
        return value or 0.0

    async def _hold(self, name: str, rows: int, line: Line | None) -> None:
        async with self.admission.admitted(rows, line=line) as waited:
            self.order.append(name)
            self.waited[name] = waited
            await self._leave[name].wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_fits_runs_and_the_rest_waits_in_the_order_of_arrival() -> None:
    held = Holders(max_rows=10)
    for name, rows in (("a", 8), ("b", 2), ("c", 8), ("d", 1)):
        await held.enter(name, rows)
    assert held.order == ["a", "b"]
    assert (held.admission.running_rows, held.admission.waiting_rows) == (10, 9)
    await held.leave("b")  # d would fit, and does not overtake c
    assert held.order == ["a", "b"]
    await held.leave("a")
    assert held.order == ["a", "b", "c", "d"]
    assert held.waited["a"] == 0
    assert held.waited["c"] > 0
    await held.leave("c")
    await held.leave("d")
    assert (held.admission.running_rows, held.admission.waiting_rows) == (0, 0)


async def test_a_request_of_more_rows_than_there_are_runs_alone() -> None:
    held = Holders(max_rows=4)
    await held.enter("small", 1)
    await held.enter("large", 64)
    await held.enter("next", 1)
    assert held.order == ["small"]
    await held.leave("small")
    assert held.order == ["small", "large"]
    await held.leave("large")
    assert held.order == ["small", "large", "next"]
    await held.leave("next")
    assert held.admission.running_rows == 0


async def test_who_goes_away_leaves_the_queue_at_once() -> None:
    held = Holders(max_rows=4)
    await held.enter("a", 3)
    await held.enter("large", 4)
    await held.enter("small", 1)
    await held.cancel("large")  # what stood behind it now fits
    assert held.order == ["a", "small"]
    assert held.admission.waiting_rows == 0
    assert held.refused("left") == 1
    await held.cancel("a")
    await held.leave("small")
    assert held.admission.running_rows == 0


async def test_who_is_given_a_place_as_it_leaves_gives_it_back() -> None:
    held = Holders(max_rows=1)
    await held.enter("a", 1)
    waiting = await held.enter("b", 1)
    await held.enter("c", 1)
    held._leave["a"].set()
    for _ in range(100):
        await asyncio.sleep(0)
        if held.admission.waiting_rows == 1:  # b has a place, and does not know it yet
            break
    waiting.cancel()
    await turns()
    assert held.order == ["a", "c"]
    await held.leave("c")
    assert held.admission.running_rows == 0


async def test_a_full_queue_refuses_at_once_whoever_comes_and_says_when_to_come_back() -> None:
    held = Holders(max_rows=4, max_waiting_rows=4)
    await held.enter("a", 4)
    assert held.admission.refusal() is None
    await held.enter("b", 4)
    for rows in (1, 8):  # alike for all, so that overload does not choose between the arms
        with pytest.raises(OverloadedError) as refused:
            async with held.admission.admitted(rows):
                pass
        assert refused.value.code == "queue_full"
        assert "4 candidates are in the making and 4 wait" in refused.value.message
    refusal = held.admission.refusal()
    assert refusal is not None
    # nothing has ended yet: a place is thought to be held for 1 s; (1 + 4)/4 of that, once or twice
    assert 1.25 <= refusal.retry_after_s <= 2.501
    assert held.refused("queue_full") == 3
    await held.leave("a")
    assert held.admission.refusal() is None
    await held.leave("b")


async def test_without_a_queue_what_does_not_fit_is_refused() -> None:
    held = Holders(max_rows=2, max_waiting_rows=0)
    await held.enter("a", 1)
    assert held.admission.refusal() is None  # one more row would fit
    with pytest.raises(OverloadedError):
        async with held.admission.admitted(2):
            pass
    await held.enter("b", 1)
    assert held.order == ["a", "b"]
    await held.leave("a")
    await held.leave("b")


async def test_nobody_waits_longer_than_the_longest_wait() -> None:
    held = Holders(max_rows=1, max_wait_s=0.05)
    await held.enter("a", 1)
    started = time.perf_counter()
    with pytest.raises(OverloadedError, match=r"within 0\.05 s") as refused:
        async with held.admission.admitted(1):
            pass
    assert 0.04 < time.perf_counter() - started < 5
    assert refused.value.code == "queue_timeout"
    assert held.refused("queue_timeout") == 1
    assert held.admission.waiting_rows == 0
    await held.leave("a")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_places_and_queue_never_exceed_their_bounds_and_end_empty(seed: int) -> None:
    """Requests of random sizes that come, end and are cancelled at random moments."""
    chance = random.Random(seed)
    max_rows, max_waiting = chance.randint(1, 12), chance.randint(0, 12)

    async def scenario() -> tuple[int, int]:
        admission = Admission(max_rows, max_waiting, 60.0, Metrics())
        running: set[int] = set()
        worst = 0

        async def request(number: int, rows: int, turns_held: int) -> None:
            nonlocal worst
            async with admission.admitted(rows):
                running.add(number)
                worst = max(worst, admission.running_rows)
                for _ in range(turns_held):
                    await asyncio.sleep(0)
                running.discard(number)

        tasks: list[asyncio.Task[None]] = []
        most_waiting = 0
        for number in range(40):
            rows, held = chance.randint(1, 16), chance.randint(0, 6)
            tasks.append(asyncio.create_task(request(number, rows, held)))
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
            most_waiting = max(most_waiting, admission.waiting_rows)
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        refused = sum(isinstance(outcome, OverloadedError) for outcome in outcomes)
        cancelled = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert all(
            outcome is None or isinstance(outcome, OverloadedError | asyncio.CancelledError)
            for outcome in outcomes
        )
        assert outcomes.count(None) + refused + cancelled == 40
        assert worst <= max_rows
        assert most_waiting < max_waiting + min(16, max_rows) or most_waiting == 0
        return admission.running_rows, admission.waiting_rows

    assert asyncio.run(scenario()) == (0, 0)


@pytest.mark.parametrize(
    ("engine", "rows", "waiting"),
    [
        (LocalEngineConfig(max_rows=64), 80, 40),
        (FakeEngineConfig(capacity=256), 320, 160),
        (FakeEngineConfig(capacity=1), 1, 1),
        (VllmEngineConfig(urls=("http://a:1", "http://b:1")), 640, 320),
        (VllmEngineConfig(), 320, 160),
    ],
)
def test_defaults_follow_what_the_engine_takes(engine: object, rows: int, waiting: int) -> None:
    config = AdmissionConfig()
    assert config.rows_at_once(engine) == rows  # type: ignore[arg-type]
    assert config.rows_waiting(engine) == waiting  # type: ignore[arg-type]
    given = AdmissionConfig(max_rows=7, max_waiting_rows=0)
    assert (given.rows_at_once(engine), given.rows_waiting(engine)) == (7, 0)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_over_http(run: Run, make_config: MakeConfig) -> None:
    """Two Best-of-4 fit, one waits, the next is told to come back; what waited says how long."""
    config = make_config(
        engine={"type": "fake", "delay_s": 0.3},
        admission={"max_rows": 8, "max_waiting_rows": 4},
    )
    async with run(config) as running:
        admission = running.gateway.admission
        asking = [asyncio.create_task(running.post("/v1/best-of-n")) for _ in range(3)]
        await until(lambda: admission.waiting_rows == 4)
        assert running.metric("bond_running_rows") == 8
        assert running.metric("bond_waiting_rows") == 4
        assert running.metric("bond_waiting_requests") == 1
        refused = await running.post("/v1/distilled")
        wrong = await running.client.get("/v1/models")
        answers = await asyncio.gather(*asking)
        store = running.gateway.store.completions
        rows = [await store.get(row_id(answer.json())) for answer in answers]
        assert running.metric("bond_running_rows") == 0
        assert running.metric("bond_assignments_total", arm="distilled") == 0
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
    assert 50 < waits[2] < 20_000
    assert sorted(row.queue_s * 1000 for row in rows if row is not None) == pytest.approx(
        waits, abs=0.01
    )
    waited = max(answers, key=lambda answer: float(answer.headers["x-bond-queue-ms"]))
    timings = waited.json()["bond"]["timings"]
    assert timings["queue_ms"] == pytest.approx(waits[2], abs=0.01)
    assert timings["overhead_ms"] < 250  # the wait is not overhead


async def test_a_client_that_goes_away_leaves_the_queue_and_no_row(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(
        engine={"type": "fake", "delay_s": 0.3}, admission={"max_rows": 4, "max_waiting_rows": 4}
    )
    async with run(config) as running:
        admission = running.gateway.admission
        first = asyncio.create_task(running.post("/v1/best-of-n"))
        await until(lambda: admission.running_rows == 4)
        second = asyncio.create_task(running.post("/v1/best-of-n"))
        await until(lambda: admission.waiting_rows == 4)
        second.cancel()
        await until(lambda: admission.waiting_rows == 0)
        assert (await first).status_code == 200
        await running.gateway.background.drain(5)
        assert await running.gateway.store.completions.count() == 1


async def test_too_many_requests_are_refused_unread_but_the_state_can_be_asked(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(
        engine={"type": "fake", "delay_s": 0.3}, admission={"max_requests": 2, "max_rows": 64}
    )
    async with run(config) as running:
        asking = [asyncio.create_task(running.post("/v1/best-of-n")) for _ in range(2)]
        await until(lambda: running.gateway.admission.running_rows == 8)
        refused = await running.client.post("/v1/best-of-n", content=b"not read")
        elsewhere = await running.client.get("/v1/models")
        state = [await running.client.get(path) for path in ("/healthz", "/readyz", "/metrics")]
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
    config = make_config(
        engine={"type": "fake", "delay_s": 0.4},
        admission={"max_requests": 20, "max_rows": 64, "max_lag_s": 0.1},
    )
    async with run(config) as running:
        first = asyncio.create_task(running.post("/v1/distilled"))
        await until(lambda: running.gateway.admission.running_rows == 1)
        hold_up(0.15)  # one request in hand is no sign of too much work
        second = asyncio.create_task(running.post("/v1/distilled"))
        await until(lambda: running.gateway.admission.running_rows == 2)
        hold_up(0.15)
        late = await running.client.post("/v1/distilled", content=b"not read")
        state = await running.client.get("/v1/models")
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


async def test_nobody_waits_for_a_place_beyond_its_deadline() -> None:
    held = Holders(max_rows=1)
    await held.enter("a", 1)
    started = time.perf_counter()
    with pytest.raises(OverloadedError, match="the request's deadline") as refused:
        async with held.admission.admitted(1, 0.05):
            pass
    assert 0.04 < time.perf_counter() - started < 5
    assert refused.value.code == "queue_timeout"
    assert held.admission.waiting_rows == 0
    await held.leave("a")
    assert held.admission.running_rows == 0


async def test_answers_to_one_request_stand_in_the_queue_one_at_a_time() -> None:
    held = Holders(max_rows=2, max_waiting_rows=2)
    line = Line(at_once=8)
    for index in range(6):
        await held.enter(f"part {index}", 1, line)
    assert held.order == ["part 0", "part 1"]
    assert held.admission.waiting_rows == 1
    for name in ("a", "b"):  # what an admitted request waits for leaves others the whole queue
        assert held.admission.refusal() is None
        await held.enter(name, 1)
    assert held.admission.refusal() is not None
    for name in ("part 0", "part 1", "part 2", "a", "b", "part 3", "part 4"):
        await held.leave(name)
    assert held.order == ["part 0", "part 1", "part 2", "a", "b", "part 3", "part 4", "part 5"]
    await held.leave("part 5")
    assert (held.admission.running_rows, held.admission.waiting_rows) == (0, 0)
    assert held.admission.refusal() is None


async def test_no_more_answers_to_one_request_than_it_may_have_at_once_have_places() -> None:
    held = Holders(max_rows=10)
    line = Line(at_once=2)
    for index in range(3):
        await held.enter(f"part {index}", 1, line)
    await held.enter("other", 1)
    assert held.order == ["part 0", "part 1", "other"]
    await held.cancel("part 1")
    assert held.order == ["part 0", "part 1", "other", "part 2"]
    for name in ("part 0", "part 2", "other"):
        await held.leave(name)
    assert held.admission.running_rows == 0


async def test_only_the_first_answer_to_a_request_is_refused() -> None:
    held = Holders(max_rows=1, max_waiting_rows=0, max_wait_s=0.01)
    await held.enter("a", 1)
    refused = Line(at_once=8)
    for _ in range(3):  # the others have its refusal, which counts once
        with pytest.raises(OverloadedError):
            async with held.admission.admitted(1, line=refused):
                pass
    assert held.refused("queue_full") == 1
    await held.leave("a")
    line = Line(at_once=8)
    await held.enter("first", 1, line)
    second = await held.enter("second", 1, line)
    await asyncio.sleep(0.05)
    assert not second.done()  # max_wait_s is for those that are not admitted yet
    await held.leave("first")
    assert held.waited["second"] >= 0.05
    late = asyncio.create_task(_enter_within(held.admission, 0.02, line))
    with pytest.raises(DeadlineError, match="before all answers of the request had a place"):
        await late
    await held.leave("second")
    assert (held.admission.running_rows, held.admission.waiting_rows) == (0, 0)
    assert held.refused("queue_full") + held.refused("queue_timeout") == 1


async def _enter_within(admission: Admission, within_s: float, line: Line) -> None:
    async with admission.admitted(1, within_s, line):
        pass
