"""Several prompts in one request: choices prompt by prompt, a row each, exact usage."""

import asyncio
from typing import Any

import httpx
import pytest
from held_engine import Held
from openai import OpenAI
from running_gateway import MODEL, MakeConfig, Run, Running, eventually
from served_gateway import Serve, told
from stored import all_rows

from bond_core.errors import EngineUnavailableError
from bond_core.types import Message

PATH = "/v1/completions"
PROMPTS = ["Once upon a time", "Dear customer, ", "def main():"]


async def ask(running: Running, **body: Any) -> httpx.Response:
    return await running.client.post(PATH, json={"model": f"{MODEL}:bon", "seed": 4, **body})


async def alone(running: Running, prompt: str, **body: Any) -> dict[str, Any]:
    return (await ask(running, prompt=prompt, **body)).json()


async def test_choices_are_those_of_each_prompt_alone_in_the_order_of_the_prompts(
    run: Run, make_config: MakeConfig
) -> None:
    body = {"n": 2, "best_of": 3, "bond": {"return_candidates": True}}
    async with run(make_config()) as running:
        together = await ask(running, prompt=PROMPTS, **body)
        each = [await alone(running, prompt, **body) for prompt in PROMPTS]
        rows = (await all_rows(running.gateway.store))[:3]
    answer = together.json()
    assert together.status_code == 200
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    expected = [choice["text"] for one in each for choice in one["choices"]]
    assert [choice["text"] for choice in answer["choices"]] == expected
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer["usage"][name] == sum(one["usage"][name] for one in each)
    assert answer["usage"]["bond"]["n"] == 9
    for name in ("chosen_completion_tokens", "reward_tokens"):
        total = sum(one["usage"]["bond"][name] for one in each)
        assert answer["usage"]["bond"][name] == total > 0
    assert together.headers["x-bond-n"] == "9"
    prompts = answer["bond"]["prompts"]
    assert [p["score"] for p in prompts] == [one["bond"]["score"] for one in each]
    assert [p["candidates"] for p in prompts] == [one["bond"]["candidates"] for one in each]
    assert [p["usage"] for p in prompts] == [one["usage"] for one in each]
    assert answer["id"] == prompts[0]["id"]
    found = {f"cmpl-{row.id}": row for row in rows}
    assert [found[p["id"]].messages for p in prompts] == [(Message("prompt", t),) for t in PROMPTS]
    assert {row.total_tokens for row in rows} == {p["usage"]["total_tokens"] for p in prompts}
    assert len({row.unit for row in rows}) == 1
    assert "prompts" not in each[0]["bond"]


async def test_headers_are_those_of_one_prompt_with_the_timings_of_the_last(
    run: Run, make_config: MakeConfig
) -> None:
    engine: dict[str, Any] = {"type": "fake", "delay_s": 0.02, "capacity": 1}
    async with run(make_config(engine=engine, admission={"max_rows": 1})) as running:
        body: dict[str, Any] = {"model": f"{MODEL}:reference", "seed": 4}
        one = await ask(running, **body, prompt=PROMPTS[0])
        together = await ask(running, **body, prompt=PROMPTS)
    assert set(together.headers) == set(one.headers)
    names = ("queue", "generate", "score", "commit", "overhead")
    told = [float(together.headers[f"x-bond-{name}-ms"]) for name in names]
    timings = [
        [p["timings"][f"{name}_ms"] for name in names] for p in together.json()["bond"]["prompts"]
    ]
    assert told == pytest.approx(timings[-1], abs=0.001)  # one place: the last one waited longest
    assert told[0] >= 2 * 20
    assert all(sum(told) - told[3] >= sum(each) - each[3] for each in timings[:-1])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_prompt_that_is_too_long_is_named_by_its_place(
    run: Run, make_config: MakeConfig, stream: bool
) -> None:
    too_long = "word " * 30_000
    async with run(make_config()) as running:
        among = await ask(running, prompt=[*PROMPTS, too_long], stream=stream)
        single = await ask(running, prompt=too_long, stream=stream)
    for response, param in ((among, "prompt.3"), (single, "prompt")):
        error = response.json()["error"]
        assert response.status_code == 400
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")


async def test_all_prompts_of_a_request_have_one_arm(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        for _ in range(6):
            await ask(running, model=MODEL, prompt=PROMPTS)
        arms: dict[str, set[str]] = {}
        for row in await all_rows(running.gateway.store):
            arms.setdefault(row.unit, set()).add(row.arm.value)
    assert len(arms) == 6
    assert all(len(found) == 1 for found in arms.values())


async def test_a_stream_tells_prompt_after_prompt(serve: Serve, make_config: MakeConfig) -> None:
    body = {"model": f"{MODEL}:reference", "prompt": PROMPTS, "n": 2, "seed": 4}
    async with serve(make_config()) as served:
        whole = (await served.client.post(PATH, json=body)).json()
        answer = await told(served, PATH, **body, stream_options={"include_usage": True})
    assert answer.headers["x-bond-stream"] == "buffered"
    assert [answer.text(index) for index in range(6)] == [c["text"] for c in whole["choices"]]
    order = [chunk["choices"][0]["index"] for chunk in answer.chunks if chunk["choices"]]
    assert [i // 2 for i in order] == sorted(i // 2 for i in order)
    ends = [answer.choices(i)[-1]["finish_reason"] for i in range(6)]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    assert answer.chunks[-1]["usage"] == whole["usage"]
    assert answer.done


async def test_the_openai_package_gets_them(serve: Serve, make_config: MakeConfig) -> None:
    async with serve(make_config()) as served:

        def create() -> list[tuple[int, str]]:
            with OpenAI(api_key="unused", base_url=f"{served.url}/v1") as client:
                answer = client.completions.create(
                    model=f"{MODEL}:reference", prompt=PROMPTS, n=2, seed=4
                )
                return [(choice.index, choice.text) for choice in answer.choices]

        found = await asyncio.to_thread(create)
    assert [index for index, _ in found] == list(range(6))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_one_that_fails_fails_the_request_and_the_others_end(
    run: Run, make_config: MakeConfig, stream: bool
) -> None:
    async with run(make_config(engine={"type": "fake", "delay_s": 30})) as running:
        engine: Any = running.gateway.engine
        generate = engine.generate

        async def failing(version: str, prompt: Any, *rest: Any) -> Any:
            if prompt[0].content == PROMPTS[1]:
                await asyncio.sleep(0.05)
                raise EngineUnavailableError("this one fails")
            return await generate(version, prompt, *rest)

        engine.generate = failing
        response = await ask(running, prompt=PROMPTS, stream=stream)
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "this one fails"

        async def recorded() -> bool:
            return len(await all_rows(running.gateway.store)) == 3

        await eventually(recorded)
        rows = await all_rows(running.gateway.store)
        assert sorted(row.status for row in rows) == ["cancelled", "cancelled", "failed"]
        assert (engine.in_progress, running.gateway.admission.running_rows) == (0, 0)


async def test_no_more_candidates_run_at_once_than_one_request_may_draw(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(
        engine={"type": "fake", "delay_s": 0.02, "capacity": 100},
        arms={"max_best_of": 4},
    )
    async with run(config) as running:
        engine: Any = running.gateway.engine
        most, work = 0, engine._work

        async def watched(seconds: float) -> None:
            nonlocal most
            most = max(most, engine.in_progress)
            await work(seconds)

        engine._work = watched
        answer = (await ask(running, prompt=[f"text {i}" for i in range(9)], best_of=2)).json()
    assert len(answer["choices"]) == 9
    assert most == 4


async def test_prompts_of_an_admitted_request_wait_and_leave_others_their_turn(
    run: Run, make_config: MakeConfig
) -> None:
    admission = {"max_rows": 5, "max_waiting_rows": 1}
    async with run(make_config(admission=admission)) as running:
        engine = Held(running.gateway.engine)
        prompts = [f"text {index}" for index in range(40)]
        model = f"{MODEL}:reference"
        batch = asyncio.create_task(ask(running, model=model, prompt=prompts))

        async def has_all_places_and_waits() -> bool:
            admitted = running.gateway.admission
            return (admitted.running_rows, admitted.waiting_rows) == (5, 1)

        def all_are_drawing() -> bool:
            fake: Any = running.gateway.engine
            return fake.in_progress == 5 and engine.has_none_to_let_go

        others: list[httpx.Response] = []
        for turn in range(3):  # each behind the one of the batch that waits before it
            await eventually(has_all_places_and_waits)
            other = asyncio.create_task(ask(running, model=model, prompt="x"))
            while not other.done():
                if all_are_drawing():  # and none of them is on its way to its row
                    engine.let_go(1)
                await asyncio.sleep(0.002)
            others.append(await other)
            assert await running.gateway.store.completions.count() < 40, turn
        assert not batch.done()
        await asyncio.sleep(0.1)
        engine.let_go()
        answer = await batch
        rows = {row.messages[0].content: row for row in await all_rows(running.gateway.store)}
    assert [other.status_code for other in others] == [200, 200, 200]
    assert (answer.status_code, len(answer.json()["choices"])) == (200, 40)
    assert rows["text 39"].queue_s > 0.1  # behind all others, and not an overhead
    assert rows["text 39"].latency_s >= rows["text 39"].queue_s + rows["text 39"].generate_s
    assert (running.metric("bond_admission_refused_total", reason="queue_full")) == 0


async def test_several_prompts_are_refused_as_one_request(
    run: Run, make_config: MakeConfig
) -> None:
    admission = {"max_rows": 1, "max_waiting_rows": 0}
    async with run(make_config(admission=admission)) as running:
        engine = Held(running.gateway.engine)
        one = asyncio.create_task(ask(running, prompt="x", best_of=1))

        async def has_the_place() -> bool:
            return running.gateway.admission.running_rows == 1

        await eventually(has_the_place)
        refusals = running.metric("bond_admission_refused_total", reason="queue_full")
        together = await ask(running, prompt=PROMPTS, best_of=1)
        engine.let_go()
        assert (await one).status_code == 200
        counted = running.metric("bond_admission_refused_total", reason="queue_full") - refusals
        assert await running.gateway.store.completions.count() == 1
    assert (together.status_code, together.json()["error"]["code"]) == (429, "queue_full")
    assert counted == 1


async def test_attempts_of_the_sdk_count_once_for_each_prompt(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        for retry in ("0", "1"):
            body = {"model": MODEL, "prompt": PROMPTS}
            headers = {"x-stainless-retry-count": retry}
            response = await running.client.post(PATH, json=body, headers=headers)
            assert response.status_code == 200
        rows = await all_rows(running.gateway.store)
    assert sorted(row.superseded for row in rows) == [False] * 3 + [True] * 3
    assert {row.messages[0].content for row in rows if row.superseded} == set(PROMPTS)
    assert len({row.unit for row in rows}) == 1  # the second attempt meets the first one's arm


@pytest.mark.parametrize(
    ("prompt", "param", "words"),
    [
        ([], "prompt", "must not be empty"),
        (["a", ""], "prompt.1", "must not be empty"),
        ([1, 2, 3], "prompt", "token ids are not taken"),
        ([[1, 2], [3]], "prompt", "token ids are not taken"),
        (["a"] * 2000, "prompt", "access.max_messages"),
    ],
)
async def test_what_is_no_list_of_texts_is_refused(
    prompt: Any, param: str, words: str, run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(access={"max_messages": 1000})) as running:
        response = await ask(running, prompt=prompt)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert words in error["message"]
        assert await running.gateway.store.completions.count() == 0


async def test_an_idempotency_key_is_for_one_prompt(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        body, key = {"model": f"{MODEL}:bon", "prompt": PROMPTS}, {"Idempotency-Key": "k"}
        response = await running.client.post(PATH, json=body, headers=key)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "Idempotency-Key"
        one = await running.client.post(PATH, json=body | {"prompt": PROMPTS[:1]}, headers=key)
        assert one.status_code == 200
