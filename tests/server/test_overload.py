"""More than the engine can do: what is accepted is not slower, and the rest hears so at once.

The figures on an idle machine are those of bench/overload.py; here the bounds leave room for a
machine that is not.
"""

import asyncio
import time
from dataclasses import dataclass

import httpx
from running_gateway import MakeConfig, Run, Running

CAPACITY = 8
DELAY_S = 0.4
SATURATING = CAPACITY / DELAY_S
"""Requests per second that fill the engine."""
SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Timed:
    seconds: float
    response: httpx.Response


async def offered(running: Running, rate: float) -> list[Timed]:
    """Requests at even intervals, whatever the answers do; timed from when they were due."""
    start = time.perf_counter()

    async def ask(due_s: float) -> Timed:
        await asyncio.sleep(start + due_s - time.perf_counter())
        response = await running.post("/v1/distilled", max_tokens=4)
        return Timed(time.perf_counter() - start - due_s, response)

    count = int(rate * SECONDS)
    return await asyncio.gather(*(ask(number / rate) for number in range(count)))


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


async def test_at_three_times_what_the_engine_can_the_accepted_are_served_as_before(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(engine={"type": "fake", "delay_s": DELAY_S, "capacity": CAPACITY})
    async with run(config) as running:
        below = await offered(running, 0.8 * SATURATING)
        over = await offered(running, 3 * SATURATING)
        assert running.gateway.admission.running_rows == 0
        assert running.gateway.admission.waiting_rows == 0
        refused_count = running.metric("bond_admission_refused_total", reason="queue_full")
        rows = await running.gateway.store.completions.count()
    assert {timed.response.status_code for timed in (*below, *over)} == {200, 429}
    served = [timed for timed in below if timed.response.status_code == 200]
    assert len(served) > 0.5 * len(below)  # all of them, where the machine keeps up
    accepted = [timed for timed in over if timed.response.status_code == 200]
    refused = [timed for timed in (*below, *over) if timed.response.status_code == 429]
    assert rows == len(served) + len(accepted)
    assert refused_count == len(refused)
    # the engine is kept busy, and the rest is refused
    assert len(accepted) > 0.4 * SATURATING * SECONDS
    assert len(refused) > 0.2 * len(over)
    assert {timed.response.json()["error"]["code"] for timed in refused} == {"queue_full"}
    assert all("retry-after-ms" in timed.response.headers for timed in refused)
    # twice, and what a busy machine adds
    p99_below, p99_over = (p99([t.seconds for t in some]) for some in (served, accepted))
    assert p99_over < 2 * p99_below + 3
    assert p99([timed.seconds for timed in refused]) < 3
    # ten may be at work for eight places, and five wait for them: 0.05 s, and 0.1 s
    queued = [float(timed.response.headers["x-bond-queue-ms"]) for timed in accepted]
    assert 0 < max(queued) < 4000


async def test_a_flood_is_refused_and_leaves_nothing_behind(
    run: Run, make_config: MakeConfig
) -> None:
    """Everything comes in one moment, more than there may be requests at all."""
    config = make_config(
        engine={"type": "fake", "delay_s": 0.1, "capacity": 4}, admission={"max_requests": 50}
    )
    async with run(config) as running:
        asking = [asyncio.create_task(running.post("/v1/best-of-n")) for _ in range(300)]
        responses = await asyncio.gather(*asking)
        counts = {
            code: sum(response.status_code == code for response in responses)
            for code in {response.status_code for response in responses}
        }
        again = await running.post("/v1/best-of-n")
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert running.metric("bond_in_flight_requests") == 0
        assert running.gateway.admission.waiting_rows == 0
    assert set(counts) <= {200, 429, 503}
    # five rows: one Best-of-4 at a time; the queue of two rows takes one more
    assert counts[200] >= 2
    assert counts.get(429, 0) + counts.get(503, 0) == 300 - counts[200]
    assert again.status_code == 200
    assert len(tasks) < 20
