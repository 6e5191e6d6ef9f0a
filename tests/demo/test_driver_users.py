"""The users of the demo, over a transport of ours."""

import asyncio
import json

import httpx
from skipped_time import run_skipping

from bond_client import AsyncClient
from bond_core.types import Message
from bond_demo.users import Users

CONVERSATIONS = [
    (Message("system", "Be short."), Message("user", f"question {number}")) for number in range(9)
]
ANSWER = {
    "id": "c", "created": 1, "model": "demo",
    "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2,
        "bond": {"n": 1, "chosen_completion_tokens": 1},
    },
    "bond": {
        "arm": "reference", "version": "v0000", "strategy": "single", "best_of": 1, "score": None,
        "timings": {"generate_ms": 1, "score_ms": 0, "overhead_ms": 0},
    },
}  # fmt: skip


class Gateway:
    """Answers, or fails every third request; lets a test wait for a number of them."""

    def __init__(self, *, failing: bool = False) -> None:
        self.bodies: list[dict[str, object]] = []
        self.under_way = 0
        self.most_under_way = 0
        self._failing = failing
        self._enough = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self.bodies.append(json.loads(request.content))
        if len(self.bodies) == 6:
            self._enough.set()
        if self._failing and len(self.bodies) % 3 == 0:
            error = {"message": "busy", "type": "t", "param": None, "code": None}
            return httpx.Response(503, json={"error": error})
        return httpx.Response(200, json=ANSWER)

    async def answered_six(self) -> None:
        await asyncio.wait_for(self._enough.wait(), 60)


async def ask_six(gateway: Gateway, *, num_users: int = 2) -> Users:
    async with AsyncClient("http://h", transport=httpx.MockTransport(gateway)) as client:
        users = Users(
            client, "demo", iter(CONVERSATIONS * 100), rate_per_s=1000.0, num_users=num_users,
            seed=1,
        )  # fmt: skip
        running = asyncio.create_task(users.run())
        await gateway.answered_six()
        users.stop()
        await running
    return users


async def test_users_ask_the_plain_name_and_send_the_whole_conversation() -> None:
    gateway = Gateway()
    users = await ask_six(gateway)
    assert gateway.bodies[0] == {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "question 0"},
        ],
    }
    asked = [body["messages"][1]["content"] for body in gateway.bodies]  # type: ignore[index]
    assert sorted(asked[:6]) == [f"question {number}" for number in range(6)]
    assert users.answered == len(gateway.bodies)
    assert users.failures.total() == 0
    assert users.first_answer_at is not None
    assert gateway.most_under_way <= 2


async def test_failures_are_counted_by_message_and_do_not_stop_a_user() -> None:
    gateway = Gateway(failing=True)
    users = await ask_six(gateway, num_users=1)
    assert users.failures["busy (HTTP 503)"] == len(gateway.bodies) // 3 >= 2
    assert users.answered == len(gateway.bodies) - users.failures.total()


def test_pauses_keep_the_rate() -> None:
    """Of 40 requests in a second, 400 in ten: pauses are exponential, so within 4 deviations."""

    async def ten_seconds() -> int:
        async with AsyncClient("http://h", transport=httpx.MockTransport(Gateway())) as client:
            users = Users(
                client, "demo", iter(CONVERSATIONS * 100), rate_per_s=40.0, num_users=4, seed=3
            )
            running = asyncio.create_task(users.run())
            await asyncio.sleep(10.0)
            users.stop()
            await running
        return users.answered

    assert 320 <= run_skipping(ten_seconds()) <= 480
