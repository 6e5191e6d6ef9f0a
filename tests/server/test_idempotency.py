"""`Idempotency-Key`: answered once, replayed byte for byte; retries of SDKs count once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from api_keys import bearer, make_key
from disconnecting import disconnecting_post
from held_engine import Held
from running_gateway import MakeConfig, Run, Running, eventually, row_id, scorer, settled

from bond_core.engines.fake import FakeEngine
from bond_core.errors import EngineUnavailableError
from bond_core.store.idempotency import IdempotencyKeys, KeyState

HI = {"messages": [{"role": "user", "content": "hi"}]}
KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def fake(running: Running) -> FakeEngine:
    engine = running.gateway.engine
    assert isinstance(engine, FakeEngine)
    return engine


async def keyed(
    running: Running, path: str = "/v1/best-of-n", key: str = "k1", **more: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key, **more.pop("headers", {})}
    return await running.client.post(path, json={**HI, **more}, headers=headers)


def at_work(running: Running) -> Callable[[], Awaitable[bool]]:
    """Whether the engine draws the candidates of one request."""

    async def is_at_work() -> bool:
        return fake(running).in_progress == 4

    return is_at_work


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/best-of-n", {"n": 2, "bond": {"return_candidates": True}}),
        ("/v1/distilled", {}),
        ("/v1/chat/completions", {"model": "tiny:1b", "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {"model": "tiny:1b:bon", "stream": True}),
        (
            "/v1/distilled",
            {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True},
        ),
    ],
)
async def test_a_repeated_request_gets_the_bytes_of_the_first(
    run: Run, make_config: MakeConfig, path: str, more: dict[str, Any]
) -> None:
    async with run(make_config()) as running:
        first = await keyed(running, path, **more)
        again = await keyed(running, path, **more)
        quoted = await keyed(running, path, key='"k1"', **more)
        fresh = await keyed(running, path, key="k2", **more)
        rows = await running.gateway.store.completions.count()
        replays = running.metric("bond_idempotent_requests_total", outcome="replayed")
    assert first.status_code == again.status_code == quoted.status_code == 200
    assert first.content == again.content == quoted.content
    assert "x-bond-replayed" not in first.headers
    assert again.headers["x-bond-replayed"] == "true"
    ours = {name: value for name, value in first.headers.items() if name.startswith("x-bond-")}
    assert ours.items() <= dict(again.headers).items()
    assert again.headers["content-type"] == first.headers["content-type"]
    assert fresh.content != first.content
    assert (rows, replays) == (2, 2)


async def test_raw_completions_are_answered_once_too(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        asked = {"model": "tiny:1b", "prompt": "once upon a time"}
        answers = [
            await running.client.post("/v1/completions", json=asked, headers=KEY) for _ in range(2)
        ]
    assert answers[0].status_code == 200
    assert answers[0].content == answers[1].content
    assert answers[1].headers["x-bond-replayed"] == "true"


async def test_a_stream_that_fails_leaves_the_key_free(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        database = running.gateway.store.database
        refuse = (
            "CREATE TRIGGER refuse BEFORE INSERT ON completions"
            " BEGIN SELECT RAISE(ABORT, 'no row today'); END"
        )
        await database.write(lambda c: c.exec_driver_sql(refuse).close())
        failed = await keyed(running, "/v1/distilled", stream=True)
        await database.write(lambda c: c.exec_driver_sql("DROP TRIGGER refuse").close())
        retried = await keyed(running, "/v1/distilled", stream=True)
        again = await keyed(running, "/v1/distilled", stream=True)
    assert "store_unavailable" in failed.text
    assert "[DONE]" not in failed.text
    assert "x-bond-replayed" not in retried.headers
    assert retried.text.endswith("data: [DONE]\n\n")
    assert again.text == retried.text


async def test_replays_survive_a_restart(run: Run, make_config: MakeConfig) -> None:
    config = make_config()
    async with run(config) as running:
        first = await keyed(running)
    async with run(config) as running:
        again = await keyed(running)
        assert fake(running).drawn == 0
    assert (again.content, again.headers["x-bond-replayed"]) == (first.content, "true")


async def test_a_key_belongs_to_one_request_of_one_caller(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        ours, theirs = [bearer((await make_key(running, {"infer"}))[1]) for _ in range(2)]
        first = await keyed(running, headers=ours)
        other_body = await keyed(running, seed=1, headers=ours)
        other_route = await keyed(running, "/v1/distilled", headers=ours)
        other_caller = await keyed(running, seed=1, headers=theirs)
        rows = await running.gateway.store.completions.count()
    assert first.status_code == other_caller.status_code == 200
    assert "x-bond-replayed" not in other_caller.headers
    for refused in (other_body, other_route):
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "idempotency_key_reused"
        assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert rows == 2


async def test_a_second_request_waits_for_the_first(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(engine={"type": "fake", "delay_s": 0.3})) as running:
        answers = await asyncio.gather(*(keyed(running) for _ in range(5)))
        rows = await running.gateway.store.completions.count()
    assert {answer.content for answer in answers} == {answers[0].content}
    assert sorted("x-bond-replayed" in answer.headers for answer in answers) == [False, *[True] * 4]
    assert rows == 1


async def test_waiting_is_bounded(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(server={"idempotency_wait_s": 0.1})) as running:
        engine = Held(fake(running))
        first = asyncio.create_task(keyed(running))
        await eventually(at_work(running))
        busy = await keyed(running)
        reused = await keyed(running, seed=1)
        engine.let_go()
        assert (await first).status_code == 200
        replayed = await keyed(running)
    assert busy.status_code == 409
    assert busy.json()["error"]["code"] == "idempotency_key_in_flight"
    assert (busy.headers["retry-after"], busy.headers["retry-after-ms"]) == ("1", "1000")
    assert reused.status_code == 422  # a wrong body need not wait to be told
    assert replayed.content == (await first).content


async def test_a_key_whose_request_failed_is_free(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        fake(running).failure = EngineUnavailableError("the engine is away")
        failed = await keyed(running)
        invalid = await keyed(running, best_of=10_000)
        fake(running).failure = None
        retried = await keyed(running)
        again = await keyed(running)
    assert (failed.status_code, invalid.status_code) == (503, 400)
    assert retried.status_code == 200
    assert "x-bond-replayed" not in retried.headers
    assert again.content == retried.content


async def test_a_row_that_is_not_committed_leaves_the_key_free(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config()
    async with run(config) as running:
        database = running.gateway.store.database
        refuse = (
            "CREATE TRIGGER refuse BEFORE INSERT ON completions"
            " BEGIN SELECT RAISE(ABORT, 'no row today'); END"
        )
        await database.write(lambda c: c.exec_driver_sql(refuse).close())
        refused = await keyed(running)
        await database.write(lambda c: c.exec_driver_sql("DROP TRIGGER refuse").close())
        retried = await keyed(running)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert retried.status_code == 200
    assert "x-bond-replayed" not in retried.headers


async def test_a_client_that_went_away_finds_the_key_free(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        engine = Held(fake(running))
        key = (b"idempotency-key", b"k1")
        await disconnecting_post(running, "/v1/best-of-n", eventually(at_work(running)), header=key)
        await settled(running)
        engine.let_go()
        answered = await keyed(running)
    assert answered.status_code == 200
    assert "x-bond-replayed" not in answered.headers


async def test_a_client_that_goes_away_while_its_key_is_claimed_leaves_it_free(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config(server={"idempotency_wait_s": 0.2})) as running:
        claim = IdempotencyKeys.claim
        claimed, is_claimed, go_on = list[str](), asyncio.Event(), asyncio.Event()

        async def slow(self: IdempotencyKeys, *args: Any) -> KeyState:
            state = await claim(self, *args)
            claimed.append(state.holder)
            is_claimed.set()
            await go_on.wait()  # committed, and its word still on the way
            return state

        async def leaves() -> None:
            await is_claimed.wait()
            asyncio.get_running_loop().call_later(0.2, go_on.set)

        with monkeypatch.context() as patched:
            patched.setattr(IdempotencyKeys, "claim", slow)
            key = (b"idempotency-key", b"k1")
            sent = await disconnecting_post(running, "/v1/best-of-n", leaves(), header=key)
        assert sent[0]["status"] == 499
        assert len(claimed) == 1
        answered = await keyed(running)
    assert answered.status_code == 200
    assert "x-bond-replayed" not in answered.headers


async def test_without_content_a_used_key_is_told_and_nothing_is_kept(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(server={"log_content": False})) as running:
        first = await keyed(running)
        again = await keyed(running)
        rows = await running.gateway.store.completions.count()
        file = running.gateway.config.data_dir / "bond.db"
        text = first.json()["choices"][0]["message"]["content"].encode()
        assert text not in file.read_bytes() + file.with_name("bond.db-wal").read_bytes()
    error = again.json()["error"]
    assert (again.status_code, error["code"]) == (409, "answer_not_kept")
    assert first.json()["id"] in error["message"]
    assert again.headers["x-should-retry"] == "false"
    assert rows == 1


@pytest.mark.parametrize("key", ["", " ", "x" * 256, '"open', '""', "a b", "tab\there"])
async def test_keys_that_are_none(run: Run, make_config: MakeConfig, key: str) -> None:
    async with run(make_config()) as running:
        response = await keyed(running, key=key)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Idempotency-Key"


async def test_a_scorer_that_failed_does_not_change_the_replay(
    run: Run, make_config: MakeConfig, rewards_file: Any
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "breaks_once"))) as running:
        first = await keyed(running)
        again = await keyed(running)
    assert first.headers["x-bond-degraded"] == again.headers["x-bond-degraded"] == "scoring_failed"
    assert first.content == again.content


async def test_a_retry_of_an_sdk_counts_once_and_meets_the_same_arm(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(arms={"split": {"reference": 1, "bon": 1, "distilled": 1}})
    arms: list[set[str]] = []
    async with run(config) as running:
        for question in range(12):
            body = {"model": "tiny:1b", "messages": [{"role": "user", "content": f"q{question}"}]}
            attempts = []
            for retry in range(3):
                if retry == 1:
                    fake(running).failure = EngineUnavailableError("away for a moment")
                attempts.append(
                    await running.client.post(
                        "/v1/chat/completions",
                        json=body,
                        headers={"x-stainless-retry-count": str(retry)},
                    )
                )
                fake(running).failure = None
            assert [a.status_code for a in attempts] == [200, 503, 200]
            arms.append({a.headers["x-bond-arm"] for a in (attempts[0], attempts[2])})
        rows = await running.gateway.store.completions.count()
        summaries = await running.gateway.store.completions.summarise()
        traffic = (await running.client.get("/v1/training")).json()["arms"]
        last = await running.gateway.store.completions.get(row_id(attempts[2].json()))
    assert {len(found) for found in arms} == {1}
    assert len(set().union(*arms)) == 3  # so that meeting the same arm was not luck
    assert rows == 36
    assert sum(s.requests for s in summaries) == sum(a["requests"] for a in traffic) == 12
    assert sum(s.failed for s in summaries) == 0
    assert last is not None
    assert (last.origin.retry, last.superseded) == (2, False)
