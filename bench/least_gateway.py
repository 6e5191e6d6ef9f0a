"""What a gateway costs that does nothing but keep a log before it answers, in this language,
framework and with this process's settings.

FastAPI checks the body, aiohttp asks the engine for token ids and log-probabilities, both are read;
the answer goes out after its row is committed to SQLite (rows that are ready together share a
transaction on a thread); afterwards its reward is written to the row; one line per request in the
log. No keys, limits, arms, versions, admission, deadlines, retries, replicas, health, metrics,
tracing, idempotency, retention: what ours does beyond this is what those cost.

    python bench/least_gateway.py UPSTREAM_URL PORT DATABASE
"""

import asyncio
import gc
import logging
import sqlite3
import sys
import time
import uuid
from array import array
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

ROW = "INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
logger = logging.getLogger("least")


class Message(BaseModel):
    """One turn."""

    role: str
    content: str


class Body(BaseModel):
    """A chat completion that is asked for."""

    model: str
    messages: list[Message]


class Log:
    """Rows, committed in groups by one thread."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        columns = "created, model, messages, prompt, tokens, logprobs, text, latency, reward"
        self._database.execute(f"CREATE TABLE completions (id TEXT PRIMARY KEY, {columns})")
        self._database.execute("CREATE INDEX by_time ON completions (created)")
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[None]]] = []
        self._rewards: list[tuple[float, str]] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def commit(self, row: tuple[Any, ...]) -> None:
        """Return when the row is in the database."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        self._wake.set()
        await done

    def judge(self, id_: str, text: str) -> None:
        """Write the row's reward with the next rows."""
        self._rewards.append((float(len(text)), id_))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for _ in range(2):
                await asyncio.sleep(0)
            waiting, self._waiting = self._waiting, []
            rewards, self._rewards = self._rewards, []
            rows = [row for row, _ in waiting]
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._write, rows, rewards)
            for _, done in waiting:
                if not done.done():
                    done.set_result(None)

    def _write(self, rows: list[tuple[Any, ...]], rewards: list[tuple[float, str]]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(ROW, rows)
        self._database.executemany("UPDATE completions SET reward = ? WHERE id = ?", rewards)
        self._database.execute("COMMIT")


def create_app(upstream: str, path: str) -> FastAPI:
    """One route."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.log = Log(path)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            app.state.session = session
            gc.collect()
            gc.freeze()  # as bondserve does
            gc.set_threshold(10_000, 20, 20)
            yield

    app = FastAPI(lifespan=lifespan)
    headers = {"content-type": "application/json"}

    @app.post("/v1/chat/completions")
    async def chat(body: Body, request: Request) -> Response:
        started, arrived, id_ = time.perf_counter(), time.time(), str(uuid.uuid4())
        messages = [{"role": m.role, "content": m.content} for m in body.messages]
        asked = {"model": body.model, "messages": messages, "logprobs": True, "top_logprobs": 0}
        data = orjson.dumps(asked | {"return_token_ids": True, "max_tokens": 256})
        url = f"{upstream}/v1/chat/completions"
        async with request.app.state.session.post(url, data=data, headers=headers) as answer:
            told = orjson.loads(await answer.read())
        [choice] = told["choices"]
        text = choice["message"]["content"]
        prompt, tokens = array("I", told["prompt_token_ids"]), array("I", choice["token_ids"])
        logprobs = array("f", [entry["logprob"] for entry in choice["logprobs"]["content"]])
        said = orjson.dumps(messages)
        latency_s = time.perf_counter() - started
        log: Log = request.app.state.log
        await log.commit(
            (id_, arrived, body.model, said, prompt.tobytes(), tokens.tobytes(),
             logprobs.tobytes(), text, latency_s)
        )  # fmt: skip
        log.judge(id_, text)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        whole = {
            "id": f"chatcmpl-{id_}",
            "object": "chat.completion",
            "created": int(arrived),
            "model": body.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": choice["finish_reason"],
                }
            ],
            "usage": usage | {"total_tokens": len(prompt) + len(tokens)},
        }
        logger.info("POST /v1/chat/completions 200 %.1f ms", 1000 * latency_s)
        return Response(orjson.dumps(whole), headers={"x-request-id": id_, **headers})

    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    uvicorn.run(
        create_app(sys.argv[1], sys.argv[3]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
    )
