"""Who goes away ends the work; who cancels from outside is told so."""

import asyncio
import gc

import pytest
from starlette.requests import Request
from starlette.types import Message

from bond_server.routes.disconnect import until_disconnect


class Connection:
    """A request whose client goes away when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.request = Request({"type": "http", "method": "POST", "headers": []}, self._receive)
        self.cancelled = 0

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def work(self, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"


async def test_the_result_is_given_and_nothing_is_left_running() -> None:
    connection = Connection()
    before = asyncio.all_tasks()
    assert await until_disconnect(connection.request, connection.work(0.01)) == "done"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_client_that_goes_away_ends_the_work_and_its_caller_goes_on() -> None:
    connection = Connection()
    asyncio.get_running_loop().call_later(0.01, connection.gone.set)
    assert await until_disconnect(connection.request, connection.work(60)) is None
    assert connection.cancelled == 1
    running = asyncio.current_task()
    assert running is not None
    assert running.cancelling() == 0
    await asyncio.sleep(0)  # not cancelled any more


async def test_a_failure_is_the_callers() -> None:
    async def fails() -> str:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await until_disconnect(Connection().request, fails())


@pytest.mark.parametrize("gone_too", [False, True])
async def test_a_cancellation_from_outside_is_raised(gone_too: bool) -> None:
    connection = Connection()
    asking = asyncio.create_task(until_disconnect(connection.request, connection.work(60)))
    await asyncio.sleep(0.01)
    if gone_too:
        connection.gone.set()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert connection.cancelled == 1


async def test_a_connection_that_cannot_be_watched_counts_as_closed_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.01)
        raise RuntimeError("the server's own")

    untold: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: untold.append(context["message"]))
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    connection = Connection()
    assert await until_disconnect(request, connection.work(60)) is None
    assert connection.cancelled == 1
    # one that fails after the work has ended is of no interest
    assert await until_disconnect(request, connection.work(0)) == "done"
    await asyncio.sleep(0.05)
    gc.collect()
    assert untold == []
    [record] = [r for r in caplog.records if "cannot be watched" in r.message]
    assert record.exc_info is not None


async def test_work_that_ends_in_spite_of_its_cancellation_leaves_none_pending() -> None:
    connection = Connection()

    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "all the same"
        return "too late"

    asyncio.get_running_loop().call_later(0.01, connection.gone.set)
    assert await until_disconnect(connection.request, stubborn()) == "all the same"
    running = asyncio.current_task()
    assert running is not None
    assert running.cancelling() == 0
