"""Policy versions: who may become what, and that exactly one is active."""

import asyncio
import itertools
from dataclasses import replace

import pytest
from databases import OpenStoreAt
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from stored import policy

from bond_core.errors import PolicyStateError
from bond_core.store import Store
from bond_core.types import PolicyState

CHALLENGER, CANARY, ACTIVE, RETIRED, REJECTED, ROLLED_BACK = PolicyState
BY_MOVE = {
    (CHALLENGER, CANARY),
    (CHALLENGER, REJECTED),
    (CANARY, REJECTED),
    (CANARY, ROLLED_BACK),
}


async def states(store: Store) -> dict[str, PolicyState]:
    return {record.version: record.state for record in await store.policies.all()}


async def test_a_new_store_serves_the_reference(store: Store) -> None:
    assert await store.policies.active() == "v0000"
    [reference] = await store.policies.all()
    assert (reference.version, reference.state, reference.path) == ("v0000", ACTIVE, "")
    assert (reference.parent, reference.step, reference.evaluation) == (None, 0, {})
    assert reference.created_at > 1_700_000_000


async def test_every_field_comes_back_as_it_was(store: Store) -> None:
    evaluation = {
        "reward": {"mean": 0.5, "ci": [0.25, 0.75]},
        "n_q": float("inf"),
        "worst": [float("-inf")],
        "note": "é \x00",
        "passed": True,
        "kl": None,
    }
    record = policy("v0001", reason="passed\x00the gate", evaluation=evaluation, updated_at=1001.5)
    await store.policies.insert(record)
    found = await store.policies.get("v0001")
    assert found == replace(record, reason="passed\ufffdthe gate")
    assert await store.policies.get("v0002") is None


async def test_a_version_is_inserted_once_and_needs_its_parent(store: Store) -> None:
    await store.policies.insert(policy("v0001"))
    with pytest.raises(PolicyStateError, match="v0001 cannot be inserted: it exists already"):
        await store.policies.insert(policy("v0001", step=99))
    with pytest.raises(PolicyStateError, match="its parent v0009 does not"):
        await store.policies.insert(policy("v0002", parent="v0009"))
    with pytest.raises(PolicyStateError, match="as active"):
        await store.policies.insert(policy("v0002", state=ACTIVE))
    assert await states(store) == {"v0000": ACTIVE, "v0001": CHALLENGER}


async def test_moves_are_those_of_the_table(store: Store) -> None:
    for number, (start, end) in enumerate(itertools.product(PolicyState, PolicyState), start=1):
        version = "v0000" if start is ACTIVE else f"v{number:04d}"
        if start is not ACTIVE:
            await store.policies.insert(policy(version, state=start))
        if (start, end) in BY_MOVE:
            assert await store.policies.move(version, start, end, "because")
            found = await store.policies.get(version)
            assert found is not None
            assert (found.state, found.reason) == (end, "because")
            assert found.updated_at > found.created_at
        else:
            with pytest.raises(PolicyStateError, match=version):
                await store.policies.move(version, start, end, "because")
            assert (await states(store))[version] == start


@pytest.mark.parametrize("start", [s for s in PolicyState if s is not ACTIVE])
async def test_what_may_become_active(store: Store, start: PolicyState) -> None:
    await store.policies.insert(policy("v0001", state=start))
    if start in (CHALLENGER, CANARY, RETIRED):
        await store.policies.activate("v0001", "better")
        assert await store.policies.active() == "v0001"
        assert await states(store) == {"v0000": RETIRED, "v0001": ACTIVE}
        gone = await store.policies.get("v0000")
        assert gone is not None
        assert gone.reason == "replaced by v0001: better"
    else:
        with pytest.raises(PolicyStateError, match=f"v0001 cannot go from {start} to active"):
            await store.policies.activate("v0001", "better")
        assert await store.policies.active() == "v0000"
        assert await states(store) == {"v0000": ACTIVE, "v0001": start}


async def test_a_move_compares_before_it_sets(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    one, other = await open_store_at(database_url), await open_store_at(database_url)
    await one.policies.insert(policy("v0001"))

    results = await asyncio.gather(
        one.policies.move("v0001", CHALLENGER, CANARY, "one"),
        other.policies.move("v0001", CHALLENGER, REJECTED, "other"),
        one.policies.move("v0001", CHALLENGER, CANARY, "one again"),
        other.policies.move("v0001", CHALLENGER, REJECTED, "other again"),
    )

    assert sorted(results) == [False, False, False, True]
    assert not await one.policies.move("v0007", CHALLENGER, CANARY, "no such version")


async def test_concurrent_activations_leave_one_active(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    stores = [await open_store_at(database_url) for _ in range(3)]
    versions = [f"v000{i}" for i in range(1, 7)]
    for version in versions:
        await stores[0].policies.insert(policy(version))

    await asyncio.gather(
        *(stores[i % 3].policies.activate(version, "race") for i, version in enumerate(versions))
    )

    found = await states(stores[0])
    active = [version for version, state in found.items() if state is ACTIVE]
    assert active == [await stores[1].policies.active()]
    assert list(found.values()).count(RETIRED) == 6


async def test_only_one_of_those_who_expect_the_same_version_wins(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    one, other = await open_store_at(database_url), await open_store_at(database_url)
    await one.policies.insert(policy("v0001"))
    await one.policies.insert(policy("v0002"))

    outcomes = await asyncio.gather(
        one.policies.activate("v0001", "race", expected="v0000"),
        other.policies.activate("v0002", "race", expected="v0000"),
        return_exceptions=True,
    )

    lost = [outcome for outcome in outcomes if outcome is not None]
    assert len(lost) == 1
    assert isinstance(lost[0], PolicyStateError)
    assert "is active, not v0000; decide again" in str(lost[0])


async def test_an_activation_that_fails_changes_nothing(store: Store) -> None:
    await store.policies.insert(policy("v0001"))
    await store.policies.activate("v0001", "better")
    before = await store.policies.all()
    with pytest.raises(PolicyStateError, match="v0009 does not exist"):
        await store.policies.activate("v0009", "a typing error")
    with pytest.raises(PolicyStateError, match="v0001 cannot go from active to rejected"):
        await store.policies.activate("v0000", "back", previous_becomes=REJECTED)
    await store.policies.activate("v0001", "again")  # it is active already
    assert await store.policies.all() == before
    assert await store.policies.active() == "v0001"


async def test_rolling_back_is_final_for_the_version_but_not_for_the_reference(
    store: Store,
) -> None:
    await store.policies.insert(policy("v0001"))
    with pytest.raises(PolicyStateError, match="is the reference and cannot be rolled back"):
        await store.policies.activate("v0001", "better", previous_becomes=ROLLED_BACK)
    await store.policies.activate("v0001", "better")
    await store.policies.activate("v0000", "worse after all", previous_becomes=ROLLED_BACK)
    assert await states(store) == {"v0000": ACTIVE, "v0001": ROLLED_BACK}
    assert await store.policies.active() == "v0000"
    with pytest.raises(PolicyStateError, match="it is final"):
        await store.policies.activate("v0001", "once more")


async def test_the_database_itself_refuses_a_second_active_version(store: Store) -> None:
    def insert(connection: Connection) -> None:
        connection.exec_driver_sql(
            "INSERT INTO policies VALUES ('v0001', 'active', '', NULL, 0, 0, 0, '', '{}')"
        )

    with pytest.raises(IntegrityError):
        await store.database.write(insert)
    assert await states(store) == {"v0000": ACTIVE}


async def test_names_are_given_once_across_processes(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    stores = [await open_store_at(database_url) for _ in range(3)]
    names = await asyncio.gather(*(stores[i % 3].policies.next_version() for i in range(12)))
    assert sorted(names) == [f"v{i:04d}" for i in range(1, 13)]
    await stores[0].policies.insert(policy("v0013"))  # put there by hand
    assert await stores[1].policies.next_version() == "v0014"


async def test_versions_are_listed_in_the_order_of_their_numbers(store: Store) -> None:
    for version in ("v0002", "v10000", "v9999", "v0001"):
        await store.policies.insert(policy(version))
    listed = [record.version for record in await store.policies.all()]
    assert listed == ["v0000", "v0001", "v0002", "v9999", "v10000"]
    challengers = await store.policies.in_state(CHALLENGER)
    assert [record.version for record in challengers] == listed[1:]
