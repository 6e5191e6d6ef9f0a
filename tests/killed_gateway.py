"""Kills a real gateway with SIGKILL under load, again and again, and keeps account of its answers.

What a client has been told is written down as it arrives. After every death a new gateway has to
replay what had a key; at the end the store has to have everything else.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from bond_core.store import Store, open_store
from bond_core.store.database import in_chunks

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "server", "tests")
WORKERS = 8
REWARDS = """
def length(prompts, completions, **kwargs):
    return [float(len(turns[0]["content"])) for turns in completions]
"""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer that a client has received whole."""

    id: str
    texts: tuple[str, ...]
    request: dict[str, Any]
    key: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class Kill:
    """One life of a gateway, as its clients saw it."""

    number: int
    lived_s: float
    started_in_s: float
    acknowledged: int
    streams: int
    replayed: int


@dataclass(slots=True)
class Account:
    """Everything that was acknowledged, and each death."""

    told: list[Told] = field(default_factory=list[Told])
    kills: list[Kill] = field(default_factory=list[Kill])
    failures: list[str] = field(default_factory=list[str])


def write_config(folder: Path, url: str, durability: str = "process") -> Path:
    (folder / "rewards.py").write_text(REWARDS)
    file = folder / "bond.yaml"
    document = {
        "model": {"path": "no-model", "name": "tiny"},
        "engine": {"type": "fake", "delay_s": 0.002},
        "scorer": {"type": "function", "function": "rewards.py:length"},
        "arms": {"best_of": 4},
        "data_dir": "data",
        "store": {"url": url, "durability": durability},
        "server": {"port": 0},
    }
    file.write_text(yaml.safe_dump(document))
    return file


class Nursery:
    """Starts gateways quickly; each is a process to be killed."""

    def __init__(self, *modules: str) -> None:
        path = os.pathsep.join(str(ROOT / package) for package in PACKAGES)
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "gateway_nursery.py"), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            bufsize=1,
        )
        self._living: set[int] = set()

    async def start(self, config: Path) -> tuple[int, str]:
        """Process id and URL of a new gateway that answers."""
        [started] = await self.start_together(config, 1)
        return started

    async def start_together(self, config: Path, number: int) -> list[tuple[int, str]]:
        """The same of several that start at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{config}\n" * number)
        started: list[tuple[int, str]] = []
        for _ in range(number):
            line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), 60)
            pid, url = line.split()
            self._living.add(int(pid))
            started.append((int(pid), url))
        return started

    async def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal a gateway, if it lives, and wait until it is gone."""
        if pid not in self._living:
            return
        os.kill(pid, number)
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                await asyncio.sleep(0.002)
        self._living.discard(pid)

    def close(self) -> None:
        for pid in self._living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()


async def kill_repeatedly(
    nursery: Nursery,
    config: Path,
    kills: int,
    seed: int,
    *,
    longest_life_s: float = 10.0,
    most_answers: int | None = None,
) -> Account:
    """Start, load and kill a gateway so often; ends with one that lives, asked for replays.

    Each dies at a random time of its life, or, with `most_answers`, at a random moment after a
    random number of answers: a busy machine then takes longer and proves as much.
    """
    chance = random.Random(seed)
    account = Account()
    numbers = itertools.count()
    for number in range(kills + 1):
        began = time.perf_counter()
        pid, url = await nursery.start(config)
        started_in_s = time.perf_counter() - began
        async with client_of(url) as client:
            replayed = await _replay(client, account, chance)
            before = len(account.told)
            if number == kills:
                await nursery.kill(pid, signal.SIGTERM)
                break
            workers = [
                asyncio.create_task(_work(client, account, numbers, seed)) for _ in range(WORKERS)
            ]
            began = time.perf_counter()
            if most_answers is None:
                await asyncio.sleep(chance.uniform(0.02, longest_life_s))
            else:
                enough = before + chance.randint(1, most_answers)
                end = began + longest_life_s
                while len(account.told) < enough and time.perf_counter() < end:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                await asyncio.sleep(chance.uniform(0.0, 0.02))
            lived_s = time.perf_counter() - began
            await nursery.kill(pid)
            await asyncio.gather(*workers)
        acknowledged = account.told[before:]
        streams = sum("stream" in told.request["body"] for told in acknowledged)
        account.kills.append(
            Kill(number, lived_s, started_in_s, len(acknowledged), streams, replayed)
        )
    return account


async def check(account: Account, url: str) -> dict[str, int]:
    """Hold the store against the account; every difference is added to its failures."""
    store = await open_store(url)
    try:
        found = {
            record.id: record
            for chunk in in_chunks([told.id for told in account.told])
            for record in await store.completions.get_many(chunk)
        }
        lost = wrong = 0
        for told in account.told:
            record = found.get(told.id)
            if record is None:
                lost += 1
                account.failures.append(f"{told.id} was acknowledged and is lost")
                continue
            by_index = {c.index: c.completion.text for c in record.candidates}
            texts = tuple(by_index[index] for index in record.chosen)
            if texts != told.texts or len(record.candidates) != record.best_of:
                wrong += 1
                account.failures.append(f"{told.id} is not what was answered")
        half = await half_rows(store)
        if half:
            account.failures.append(f"{half} rows are half there")
        rows = await store.completions.count()
    finally:
        await store.close()
    return {
        "kills": len(account.kills),
        "acknowledged": len(account.told),
        "streams": sum(kill.streams for kill in account.kills),
        "replayed": sum(kill.replayed for kill in account.kills),
        "rows": rows,
        "lost": lost,
        "wrong": wrong,
        "half": half,
    }


async def half_rows(store: Store) -> int:
    """Rows of one table without their row of the other, and claims answered by no row."""
    queries = (
        "SELECT count(*) FROM completions WHERE seq NOT IN (SELECT seq FROM contents)",
        "SELECT count(*) FROM contents WHERE seq NOT IN (SELECT seq FROM completions)",
        "SELECT count(*) FROM idempotency_keys WHERE completion_id IS NOT NULL"
        " AND completion_id NOT IN (SELECT id FROM completions)",
    )
    return await store.database.read(
        lambda c: sum(c.exec_driver_sql(query).scalar_one() for query in queries)
    )


def as_json(account: Account) -> list[dict[str, Any]]:
    """One line per kill, for a file of raw results."""
    return [asdict(kill) for kill in account.kills]


@asynccontextmanager
async def client_of(url: str) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        yield client


async def _work(
    client: httpx.AsyncClient, account: Account, numbers: "itertools.count[int]", seed: int
) -> None:
    """Ask until the gateway is gone; every answer must be one."""
    while True:
        number = next(numbers)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": f"question {number}"}]}
        if number % 4 < 2:
            body["stream"] = True
        path = "/v1/best-of-n" if number % 2 else "/v1/distilled"
        key = f"key-{seed}-{number}" if number % 3 == 0 else None
        headers = {"Idempotency-Key": key} if key else {}
        try:
            response = await client.post(path, json=body, headers=headers)
        except httpx.TransportError:
            return
        if response.status_code != 200:
            account.failures.append(f"{response.status_code}: {response.text}")
            return
        told = _told(response, {"path": path, "body": body}, key)
        if told is None:
            account.failures.append(f"a stream ended without [DONE]: {response.text[-300:]}")
            return
        account.told.append(told)


async def _replay(client: httpx.AsyncClient, account: Account, chance: random.Random) -> int:
    """Ask again for some of what had a key; the newest are those nearest to a death."""
    keyed = [told for told in account.told if told.key]
    asked = keyed[-4:] + (chance.sample(keyed, 2) if len(keyed) > 6 else [])
    for told in asked:
        headers = {"Idempotency-Key": told.key or ""}
        request = told.request
        response = await client.post(request["path"], json=request["body"], headers=headers)
        if response.headers.get("x-bond-replayed") != "true" or response.content != told.content:
            account.failures.append(f"{told.id} was answered under a key and is not replayed")
    return len(asked)


def _told(response: httpx.Response, request: dict[str, Any], key: str | None) -> Told | None:
    """What the client has been told; None for a stream that was not ended by `[DONE]`."""
    if not request["body"].get("stream"):
        body = response.json()
        texts = tuple(choice["message"]["content"] for choice in body["choices"])
        return Told(_row_of(body), texts, request, key, response.content)
    events = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e[:5] == "data:"]
    if not events or events[-1] != "[DONE]":
        return None
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    return Told(_row_of(chunks[0]), (text,), request, key, response.content)


def _row_of(body: dict[str, Any]) -> str:
    return body["id"].removeprefix("chatcmpl-")
