"""The buckets of a key against an exact simulation, with clocks that are given."""

import random
from fractions import Fraction

import pytest
from databases import OpenStoreAt

from bond_core.store import KeyLimits
from bond_core.store.allowance import (
    UNIT,
    Refusal,
    Usage,
    admit,
    ended,
    full,
    refilled,
    reserve,
    settle,
    standing,
)
from bond_core.store.key_usage import RUNNING_TTL_S

MINUTE_US = 60_000_000


class Simulation:
    """The formula in fractions, with no unit of its own: level = min(L, level + dt * L / 60)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.level = Fraction(limit)
        self.at = Fraction(0)

    def take(self, seconds: Fraction, cost: int) -> Fraction:
        """0 if admitted, else the seconds to wait."""
        self.level = min(self.limit, self.level + (seconds - self.at) * Fraction(self.limit, 60))
        self.at = seconds
        if self.level >= cost:
            self.level -= cost
            return Fraction(0)
        return (cost - self.level) * 60 / self.limit


@pytest.mark.parametrize("seed", range(8))
def test_admission_is_the_exact_formula(seed: int):
    draw = random.Random(seed)
    limit, tokens_limit = draw.randint(1, 300), draw.randint(10, 100_000)
    limits = KeyLimits(limit, tokens_limit)
    requests, tokens = Simulation(limit), Simulation(tokens_limit)
    usage, now_us, admitted = full(limits, 0), 0, []
    for _ in range(2000):
        now_us += draw.choice([0, 1, 7, draw.randint(0, 3 * MINUTE_US // limit)])
        seconds, cost = Fraction(now_us, 1_000_000), draw.randint(1, tokens_limit)
        usage = refilled(usage, limits, now_us)
        for simulation, outcome, number in (
            (requests, admit(usage, limits), 1),
            (tokens, reserve(usage, limits, cost), cost),
        ):
            wait = simulation.take(seconds, number)
            if isinstance(outcome, Refusal):
                assert 0 <= Fraction(outcome.wait_us, 1_000_000) - wait < Fraction(1, 1_000_000)
                assert wait > 0
            else:
                assert wait == 0
                if simulation is requests:
                    admitted.append(now_us)
        after = admit(usage, limits)
        usage = after if isinstance(after, Usage) else usage
        after = reserve(usage, limits, cost)
        usage = after if isinstance(after, Usage) else usage
        assert Fraction(usage.requests, UNIT) == requests.level
        assert Fraction(usage.tokens, UNIT) == tokens.level
    for first in range(0, len(admitted), 13):  # the bound over any span
        for last in range(first, len(admitted), 29):
            span = Fraction(admitted[last] - admitted[first], MINUTE_US)
            assert last - first + 1 <= limit * (1 + span)


def test_a_wait_that_is_kept_is_admitted_and_one_microsecond_less_is_not():
    limits = KeyLimits(requests_per_minute=7)
    usage = full(limits, 0)
    for _ in range(7):
        usage = admit(usage, limits)
        assert isinstance(usage, Usage)
    refusal = admit(usage, limits)
    assert refusal == Refusal("requests", 8_571_429)  # 60 s / 7, rounded up
    assert isinstance(admit(refilled(usage, limits, 8_571_428), limits), Refusal)
    assert isinstance(admit(refilled(usage, limits, 8_571_429), limits), Usage)


def test_tokens_are_settled_by_what_was_drawn():
    limits = KeyLimits(tokens_per_minute=600)
    usage = reserve(full(limits, 0), limits, 500)
    assert isinstance(usage, Usage)
    back = settle(usage, limits, 500 - 120)
    assert back.tokens == 480 * UNIT
    debt = settle(usage, limits, 500 - 900)
    assert debt.tokens == -300 * UNIT
    assert reserve(debt, limits, 1) == Refusal("tokens", 30_100_000)  # 301 tokens at 10 per second
    assert standing(debt, limits).remaining_tokens == 0
    assert standing(debt, limits).reset_tokens_us == 90_000_000
    # what comes back late does not overfill
    assert settle(refilled(usage, limits, 60_000_000), limits, 500).tokens == 600 * UNIT


def test_concurrency_counts_what_runs():
    limits = KeyLimits(concurrency=2)
    usage = full(limits, 0)
    for _ in range(2):
        usage = admit(usage, limits)
        assert isinstance(usage, Usage)
    assert admit(usage, limits) == Refusal("concurrency", 0)
    assert standing(usage, limits).remaining_requests is None


def test_a_clock_that_lags_neither_refills_nor_takes():
    limits = KeyLimits(60, 60)
    usage = Usage(0, 0, 5_000_000)
    assert refilled(usage, limits, 4_000_000) == usage
    assert refilled(usage, limits, 6_000_000).requests == UNIT


async def test_in_the_store_it_is_the_same_formula(database_url: str, open_store_at: OpenStoreAt):
    now = [1000.0]
    store = await open_store_at(database_url, clock=lambda: now[0])
    shared = store.key_usage
    limits = KeyLimits(requests_per_minute=3, tokens_per_minute=1000, concurrency=2)
    draw = random.Random(5)
    local = full(limits, 1_000_000_000)
    for _ in range(60):
        now[0] += draw.choice([0.0, 0.25, 7.5])
        local = refilled(local, limits, round(now[0] * 1e6))
        wanted, (seen, got) = admit(local, limits), await shared.admit("k", limits, "here")
        if isinstance(wanted, Refusal):
            assert (seen, got) == (local, wanted)
            if wanted.limit == "concurrency":
                local = ended(local)
                assert await shared.end("k", limits, 0, "here") == local
            continue
        local = wanted
        assert seen.requests == local.requests
        cost = draw.randint(1, 600)
        wanted, (_, got) = reserve(local, limits, cost), await shared.reserve("k", limits, cost)
        if isinstance(wanted, Refusal):
            assert got == wanted
        else:
            assert got is None
            back = draw.randint(-50, cost)
            local = ended(settle(wanted, limits, back))
            assert await shared.end("k", limits, back, "here") == local


async def test_the_places_of_a_dead_gateway_come_back(
    database_url: str, open_store_at: OpenStoreAt
):
    now = [1000.0]
    store = await open_store_at(database_url, clock=lambda: now[0])
    shared = store.key_usage
    limits = KeyLimits(concurrency=2)

    async def refusal(holder: str) -> Refusal | None:
        return (await shared.admit("k", limits, holder))[1]

    busy = Refusal("concurrency", 0)
    assert [await refusal(holder) for holder in ("dead", "alive", "alive")] == [None, None, busy]
    now[0] += RUNNING_TTL_S - 1
    await shared.renew("alive", lambda _: None)  # nobody knows: what was counted stands
    assert await refusal("alive") == busy
    now[0] += 2
    assert [await refusal("alive") for _ in range(2)] == [None, busy]
    await shared.renew("alive", lambda _: 1)  # an end that could not be told in its time
    assert [await refusal("alive") for _ in range(2)] == [None, busy]
    await shared.renew("alive", lambda _: 0)
    assert [await refusal("alive") for _ in range(3)] == [None, None, busy]
    await shared.leave("alive")
    taken, none = await shared.admit("k", limits, "third")
    assert (taken.running, none) == (1, None)
