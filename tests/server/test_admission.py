"""Admission: places counted in rows, a bounded queue in order of arrival, and who leaves it."""

import asyncio
import random
import time

import pytest
from admission_holders import Holders, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from bond_core.config import AdmissionConfig, FakeEngineConfig, LocalEngineConfig, VllmEngineConfig
from bond_core.errors import OverloadedError
from bond_server.metrics import Metrics
from bond_server.services.admission import Admission


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
    assert 0.04 < time.perf_counter() - started < 30
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


async def test_nobody_waits_for_a_place_beyond_its_deadline() -> None:
    held = Holders(max_rows=1)
    await held.enter("a", 1)
    started = time.perf_counter()
    with pytest.raises(OverloadedError, match="the request's deadline") as refused:
        async with held.admission.admitted(1, 0.05):
            pass
    assert 0.04 < time.perf_counter() - started < 30
    assert refused.value.code == "queue_timeout"
    assert held.admission.waiting_rows == 0
    await held.leave("a")
    assert held.admission.running_rows == 0
