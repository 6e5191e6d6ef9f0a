"""Users of the stack: they ask without a pause, and note every answer that they got whole."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from bond_core.types import Message
from bond_demo.worlds import traffic_prompts

WORKERS = 6
LONGEST_S = 60.0


@dataclass(slots=True)
class Account:
    """What the users were told. An answer counts when it was there whole: of a stream, `[DONE]`."""

    ids: dict[str, str] = field(default_factory=dict[str, str])
    """Acknowledged answers: id, and the kind of request."""
    failures: list[str] = field(default_factory=list[str])

    def of(self, kind: str) -> int:
        """How many answers of one kind."""
        return sum(1 for found in self.ids.values() if found == kind)


class Traffic:
    """A few users, each of whom asks in turn for one sample, Best-of-4 and a stream."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self.account = Account()
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._model = model
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Ask until `stop`."""
        prompts = traffic_prompts(seed=7)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=LONGEST_S, trust_env=False
        ) as client:
            await asyncio.gather(*(self._user(client, prompts) for _ in range(WORKERS)))

    def stop(self) -> None:
        """End after the requests that run."""
        self._stopping.set()

    async def more(self, count: int, patience_s: float) -> bool:
        """Whether so many more answers were acknowledged in this time."""
        wanted = len(self.account.ids) + count
        try:
            async with asyncio.timeout(patience_s):
                while len(self.account.ids) < wanted:  # noqa: ASYNC110 - any of the users' answers
                    await asyncio.sleep(0.2)
        except TimeoutError:
            return False
        return True

    async def _user(
        self, client: httpx.AsyncClient, prompts: Iterator[tuple[Message, ...]]
    ) -> None:
        for kind in itertools.cycle(("single", "best_of_n", "stream")):
            if self._stopping.is_set():
                return
            messages = [{"role": m.role, "content": m.content} for m in next(prompts)]
            try:
                self.account.ids[await self._ask(client, kind, messages)] = kind
            except (httpx.HTTPError, ValueError) as error:
                self.account.failures.append(f"{kind}: {error!r}")
                await asyncio.sleep(0.2)

    async def _ask(
        self, client: httpx.AsyncClient, kind: str, messages: list[dict[str, Any]]
    ) -> str:
        body: dict[str, Any] = {"messages": messages}
        if kind == "stream":
            body |= {"model": f"{self._model}:distilled", "stream": True}
            return await _streamed(client, body)
        path = "/v1/distilled" if kind == "single" else "/v1/best-of-n"
        if kind == "best_of_n":
            body["best_of"] = 4
        response = await client.post(path, json=body)
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{response.status_code} {response.text[:300]}")
        return str(response.json()["id"])


async def _streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    found = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{response.status_code} {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return found
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ValueError(f"the stream ended with {chunk['error']}")
                found = chunk["id"]
    raise ValueError("the stream ended without [DONE]")
