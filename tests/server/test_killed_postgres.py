"""PostgreSQL killed with SIGKILL under load: what was acknowledged is there, what was not is a 503
in bounded time, and the same gateway goes on when the server is back."""

import asyncio
import tempfile
import time
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from own_postgres import OwnPostgres
from running_gateway import MakeConfig, Run, Running, eventually, row_id

from bond_core.store import open_store

COMMIT_TIMEOUT_S = 2.0
BOUND_S = COMMIT_TIMEOUT_S + 25.0
"""Of every answer while the server is away, on a machine with other things to do."""
WORKERS, KILLS = 6, 2


@dataclass(slots=True)
class Account:
    """What the clients were told."""

    acknowledged: dict[str, str] = field(default_factory=dict[str, str])
    """The text that was answered, by the row's id."""
    refused: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    longest_s: float = 0.0
    ended: bool = False

    def note(self, response: httpx.Response, spent_s: float) -> None:
        self.longest_s = max(self.longest_s, spent_s)
        if response.status_code == 200:
            text = response.json()["choices"][0]["message"]["content"]
            self.acknowledged[row_id(response.json())] = text
        else:
            self.refused.append((response.status_code, response.json()["error"]["code"]))


async def asking(running: Running, account: Account, worker: int) -> None:
    """Ask, one request after another, until the account is ended."""
    number = 0
    while not account.ended:
        number += 1
        began = time.monotonic()
        content = f"question {number} of {worker}"
        messages = [{"role": "user", "content": content}]
        response = await running.post("/v1/best-of-n", best_of=3, messages=messages)
        account.note(response, time.monotonic() - began)
        await asyncio.sleep(0 if response.status_code == 200 else 0.05)


async def until_more(found: Sized, count: int) -> None:
    """Until so many have been added from now on."""
    wanted = len(found) + count

    async def enough() -> bool:
        return len(found) >= wanted

    await eventually(enough, timeout_s=60)


async def test_a_killed_server_loses_nothing_acknowledged_and_the_gateway_goes_on(
    run: Run, make_config: MakeConfig
) -> None:
    server = OwnPostgres(Path(tempfile.mkdtemp()) / "postgres")
    account = Account()
    try:
        assert (server.setting("fsync"), server.setting("full_page_writes")) == ("on", "on")
        config = make_config(
            store={
                "url": server.url,
                "durability": "power",
                "commit_timeout_s": COMMIT_TIMEOUT_S,
            }
        )
        async with run(config) as running:
            workers = [asyncio.create_task(asking(running, account, i)) for i in range(WORKERS)]
            for _ in range(KILLS):
                await until_more(account.acknowledged, 30)
                await asyncio.to_thread(server.kill)
                await until_more(account.refused, WORKERS)
                assert (await running.client.get("/healthz")).status_code == 200
                await asyncio.to_thread(server.start)
            await until_more(account.acknowledged, 30)
            account.ended = True
            await asyncio.gather(*workers)
        store = await open_store(server.url)
        kept = {row.id: row for row in await store.completions.get_many([*account.acknowledged])}
        await store.close()
    finally:
        server.close()
    assert len(account.acknowledged) >= 30 * (KILLS + 1)
    assert kept.keys() == account.acknowledged.keys()
    for id, text in account.acknowledged.items():
        row = kept[id]
        [chosen] = [c for c in row.candidates if c.index == row.chosen[0]]
        assert (row.status, len(row.candidates), chosen.completion.text) == ("ok", 3, text)
    assert set(account.refused) == {(503, "store_unavailable")}
    assert account.longest_s < BOUND_S
