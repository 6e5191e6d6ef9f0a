"""Group commit: many callers, one transaction, each answered after the commit.

While one transaction commits, rows pile up; the next takes them all. Under load a commit (and with
`durability: power` its fsync) is so shared by many answers, and alone it waits for nobody.
"""

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from bond_core.errors import StoreUnavailableError
from bond_core.store.database import Database, RowRefusedError, refused

logger = logging.getLogger(__name__)

_TURNS = 2
"""Turns of the event loop before a transaction begins, while rows share transactions: what is ready
to be written in the same moment joins it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """A queue and the one task that commits it.

    `apply(connection, items)` does the writing and returns one result per item, in order. If it
    raises because of one item, the items are tried one by one, each in a savepoint, and only the
    guilty caller gets an error.
    """

    def __init__(
        self,
        database: Database,
        apply: Callable[[Connection, Sequence[Item]], Sequence[Result]],
        *,
        max_rows: int,
        timeout_s: float,
        max_waiting: int = 2048,
    ) -> None:
        self._database = database
        self._apply = apply
        self._max_rows = max_rows
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[int, tuple[Item, asyncio.Future[Result]]] = OrderedDict()
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._closing = False
        self.commits = 0
        """Transactions so far."""
        self._task = asyncio.create_task(self._run(), name="store group commit")

    @property
    def num_waiting(self) -> int:
        """Items that no transaction has taken yet."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Result:
        """Commit the item; returns when that has happened.

        Raises `StoreUnavailableError` when it was refused or took longer than the time-out, and at
        once when `max_waiting` items wait already. An item that was still waiting at its time-out
        is withdrawn; one whose transaction had begun may yet be in the database, although its
        caller was told of a failure. Cancelling does the same.
        """
        if self._closing:
            raise StoreUnavailableError("the store is closed")
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailableError(
                f"the store is behind: {self._max_waiting} rows wait to be committed "
                "(store.queue_rows); check the disk or the database's load"
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        number = next(self._numbers)
        self._waiting[number] = (item, answer)
        self._wake.set()
        late = loop.call_later(self._timeout_s, self._give_up, answer)
        try:
            return await answer
        finally:
            late.cancel()
            self._waiting.pop(number, None)  # given up, so its memory is given back

    def _give_up(self, answer: asyncio.Future[Result]) -> None:
        if not answer.done():
            answer.set_exception(
                StoreUnavailableError(
                    f"the store did not commit within {self._timeout_s:g} s "
                    "(store.commit_timeout_s); check the disk or the database's load"
                )
            )

    async def close(self) -> None:
        """Commit what waits, refuse what comes."""
        self._closing = True
        self._wake.set()
        await self._task

    async def _run(self) -> None:
        crowded = False
        while not (self._closing and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            for _ in range(_TURNS if crowded else 0):
                await asyncio.sleep(0)
            while batch := self._take():
                crowded = len(batch) > 1
                await self._commit(batch)
            if self._closing:
                self._wake.set()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_rows:
            _, (item, answer) = self._waiting.popitem(last=False)
            if not answer.done():  # done already: its caller has given up
                batch.append((item, answer))
        return batch

    async def _commit(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await self._database.write(lambda connection: self._apply(connection, items))
            self.commits += 1
        except StoreUnavailableError as error:
            outcomes = [error] * len(batch)
        except (SQLAlchemyError, RowRefusedError):
            outcomes = await self._commit_apart(items)
        except Exception as error:
            logger.exception("group commit failed")
            outcomes = [error] * len(batch)
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            if answer.done():
                continue
            if isinstance(outcome, StoreUnavailableError):  # one each: tracebacks are added to it
                answer.set_exception(StoreUnavailableError(str(outcome)))
            elif isinstance(outcome, Exception):
                answer.set_exception(refused(outcome))
            else:
                answer.set_result(outcome)

    async def _commit_apart(self, items: list[Item]) -> Sequence[Result | Exception]:
        def one_by_one(connection: Connection) -> list[Result | Exception]:
            outcomes: list[Result | Exception] = []
            for item in items:
                try:
                    with connection.begin_nested():
                        outcomes.append(self._apply(connection, [item])[0])
                except Exception as error:
                    outcomes.append(error)
            return outcomes

        try:
            outcomes = await self._database.write(one_by_one)
            self.commits += 1
            return outcomes
        except Exception as error:  # nothing may end the one task that writes
            return [error] * len(items)
