"""Idempotency keys in the store: one holder, one answer, in the transaction of its row."""

import asyncio
from dataclasses import dataclass

import pytest
from databases import OpenStoreAt
from stored import completion

from bond_core.errors import StoreUnavailableError
from bond_core.store import Store
from bond_core.store.settlement import KeptAnswer, Settlement

ANSWER = KeptAnswer(b'{"id": "chatcmpl-a"}', "application/json", {"x-bond-arm": "bon"})


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def settlement(holder: str, keep_until: float = 5000.0) -> Settlement:
    return Settlement("scope", holder, keep_until, ANSWER)


async def test_one_of_many_gets_the_key_and_the_others_see_who(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    stores = [await open_store_at(database_url) for _ in range(3)]
    names = [f"holder {i}" for i in range(12)]
    states = await asyncio.gather(
        *(
            stores[i % 3].idempotency.claim("scope", f"fingerprint {name}", name, 60.0)
            for i, name in enumerate(names)
        )
    )
    winners = {state.holder for state in states}
    assert len(winners) == 1
    assert {state.fingerprint for state in states} == {f"fingerprint {winners.pop()}"}
    assert {state.completion_id for state in states} == {None}


async def test_the_answer_is_there_exactly_when_its_row_is(store: Store) -> None:
    await store.idempotency.claim("scope", "f", "one", 60.0)
    assert (await store.idempotency.look("scope")).completion_id is None  # type: ignore[union-attr]
    await store.completions.record(completion("a"))
    with pytest.raises(StoreUnavailableError, match="not stored"):  # the row's id is taken
        await store.completions.record(completion("a"), settlement("one", 1e12))
    assert (await store.idempotency.look("scope")).completion_id is None  # type: ignore[union-attr]

    await store.completions.record(completion("b"), settlement("one", 1e12))

    state = await store.idempotency.claim("scope", "other", "two", 60.0)
    assert (state.fingerprint, state.holder, state.completion_id) == ("f", "one", "b")
    assert state.answer == ANSWER


async def test_a_row_whose_claim_was_taken_over_is_refused_alone(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    clock = Clock()
    store = await open_store_at(database_url, clock=clock)
    await store.idempotency.claim("scope", "f", "slow", 10.0)
    clock.now += 10.0
    taken = await store.idempotency.claim("scope", "f", "quick", 10.0)
    assert taken.holder == "quick"

    outcomes = await asyncio.gather(
        store.completions.record(completion("beside")),
        store.completions.record(completion("slow"), settlement("slow")),
        store.completions.record(completion("quick"), settlement("quick")),
        return_exceptions=True,
    )

    assert isinstance(outcomes[1], StoreUnavailableError)
    assert "taken over by a later attempt" in str(outcomes[1])
    assert [r.id for r in await store.completions.get_many(["beside", "slow", "quick"])] == [
        "beside",
        "quick",
    ]
    state = await store.idempotency.look("scope")
    assert state is not None
    assert (state.holder, state.completion_id) == ("quick", "quick")


async def test_leases_end_unless_they_are_renewed(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    clock = Clock()
    store = await open_store_at(database_url, clock=clock)
    await store.idempotency.claim("scope", "f", "one", 10.0)
    clock.now += 9.0
    await store.idempotency.renew(["one"], 10.0)
    clock.now += 9.0
    assert (await store.idempotency.claim("scope", "f", "two", 10.0)).holder == "one"
    clock.now += 1.0
    assert await store.idempotency.look("scope") is None
    assert (await store.idempotency.claim("scope", "f", "two", 10.0)).holder == "two"


async def test_an_answer_is_forgotten_at_its_time_and_the_key_is_free(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    clock = Clock()
    store = await open_store_at(database_url, clock=clock)
    await store.idempotency.claim("scope", "f", "one", 10.0)
    await store.completions.record(completion("a"), settlement("one", keep_until=2000.0))
    clock.now = 1999.0
    assert (await store.idempotency.claim("scope", "f", "two", 10.0)).completion_id == "a"
    clock.now = 2000.0
    free = await store.idempotency.claim("scope", "g", "two", 10.0)
    assert (free.holder, free.fingerprint, free.completion_id, free.answer) == (
        "two",
        "g",
        None,
        None,
    )


async def test_release_frees_what_failed_and_keeps_what_was_answered(store: Store) -> None:
    await store.idempotency.claim("scope", "f", "one", 60.0)
    await store.idempotency.release("scope", "somebody else")
    assert await store.idempotency.look("scope") is not None
    await store.idempotency.release("scope", "one")
    assert await store.idempotency.look("scope") is None

    await store.idempotency.claim("scope", "f", "two", 60.0)
    await store.completions.record(completion("a"), settlement("two", 1e12))
    await store.idempotency.release("scope", "two")
    assert (await store.idempotency.look("scope")).completion_id == "a"  # type: ignore[union-attr]


async def test_a_key_without_its_answer_is_still_used(store: Store) -> None:
    await store.idempotency.claim("scope", "f", "one", 60.0)
    await store.completions.record(completion("a"), settlement("one", 1e12).without_answer())
    state = await store.idempotency.look("scope")
    assert state is not None
    assert (state.completion_id, state.answer) == ("a", None)
