"""Admission of several answers to one request: they stand in the queue one at a time."""

import asyncio

import pytest
from admission_holders import Holders

from bond_core.errors import DeadlineError, OverloadedError
from bond_server.services.admission import Admission, Line


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
