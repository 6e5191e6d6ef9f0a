"""What a stream says, and in which order, on a real socket."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from held_engine import Held
from running_gateway import MODEL, MakeConfig
from served_gateway import HI, Serve, Served, Told, frames, said, told
from skipped_time import run_skipping
from starlette.types import Message

from bond_server.sse import EventStream

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
REFERENCE = {"model": f"{MODEL}:reference", "messages": HI, "seed": 7, "max_tokens": 12}
RAW = {"model": f"{MODEL}:reference", "prompt": "where is", "seed": 7, "max_tokens": 12}
USAGE = {"stream_options": {"include_usage": True}}

ASKS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, REFERENCE),
    (CHAT, REFERENCE | {"n": 3}),
    (CHAT, REFERENCE | {"best_of": 4, "n": 2}),
    (TEXT, RAW),
    (TEXT, RAW | {"n": 3}),
    (TEXT, RAW | {"best_of": 4, "n": 2}),
]


async def whole(served: Served, path: str, **body: Any) -> dict[str, Any]:
    response = await served.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def kinds(answer: Told) -> list[str]:
    """What each event is, in its order: role, content, finish, usage or done."""
    names: list[str] = []
    for frame, chunk in zip(answer.frames, [*answer.chunks, None], strict=True):
        if chunk is None:
            names.append("done" if frame == "data: [DONE]" else frame)
        elif not chunk["choices"]:
            names.append("usage")
        else:
            [choice] = chunk["choices"]
            ends = choice["finish_reason"] is not None
            opens = "role" in choice.get("delta", {})
            names.append("finish" if ends else "role" if opens else "content")
    return names


async def test_a_single_sample_comes_token_by_token_in_order(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:
        answer = await told(served, CHAT, **REFERENCE, **USAGE)
        plain = await whole(served, CHAT, **REFERENCE)
    names = kinds(answer)
    contents = names.count("content")
    assert contents > 3
    assert names == ["role", *["content"] * contents, "finish", "usage", "done"]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-bond-stream"] == "tokens"
    assert answer.headers["x-bond-arm"] == "reference"
    head = answer.chunks[0]
    for chunk in answer.chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert {name: chunk[name] for name in ("id", "created", "model", "system_fingerprint")} == {
            name: head[name] for name in ("id", "created", "model", "system_fingerprint")
        }
    assert head["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert [chunk["usage"] for chunk in answer.chunks] == [None] * (contents + 2) + [plain["usage"]]
    finish = answer.chunks[-2]
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"]
    assert finish["bond"]["best_of"] == 1
    assert ["bond" in chunk for chunk in answer.chunks[:-2]] == [False] * (contents + 1)


async def test_a_selection_comes_when_it_is_decided(serve: Serve, make_config: MakeConfig) -> None:
    body = REFERENCE | {"best_of": 4, "n": 2, "bond": {"return_candidates": True}}
    async with serve(make_config()) as served:
        answer = await told(served, CHAT, **body, **USAGE)
        plain = await whole(served, CHAT, **body)
    assert kinds(answer) == [*["role", "content"] * 2, *["finish"] * 2, "usage", "done"]
    assert [chunk["choices"][0]["index"] for chunk in answer.chunks[:-1]] == [0, 0, 1, 1, 0, 1]
    assert answer.headers["x-bond-stream"] == "buffered"
    assert answer.headers["x-bond-n"] == "4"
    for chunk in answer.chunks[4:6]:
        bond = chunk["bond"]
        assert bond["strategy"] == "best_of_n"
        assert bond["candidates"] == plain["bond"]["candidates"]
        assert bond["score"] == max(c["score"] for c in bond["candidates"])
    assert answer.chunks[-1]["usage"] == plain["usage"]


async def test_without_stream_options_no_usage_is_sent(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:
        for path, body in ASKS:
            answer = await told(served, path, **body)
            assert answer.done
            assert all("usage" not in chunk and chunk["choices"] for chunk in answer.chunks)


@pytest.mark.parametrize(("path", "body"), ASKS)
async def test_the_pieces_make_the_answer_that_is_sent_whole(
    path: str, body: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    details = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    async with serve(make_config()) as served:
        answer = await told(served, path, **body, **details)
        plain = await whole(served, path, **body, **details)
    assert len(plain["choices"]) == body.get("n", 1)
    for choice in plain["choices"]:
        pieces = answer.choices(choice["index"])
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert text != ""
        assert answer.text(choice["index"]) == text
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        told_pieces = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        for name, values in choice["logprobs"].items():
            if values is not None:
                assert [value for piece in told_pieces for value in piece[name]] == values


@pytest.mark.parametrize(("path", "body"), [ASKS[0], ASKS[2], ASKS[3], ASKS[5]])
async def test_no_part_of_a_stop_string_is_sent(
    path: str, body: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    body = body | {"max_tokens": 40, "n": 1}
    async with serve(make_config()) as served:
        text = (await told(served, path, **body)).text()
        assert len(text) > 30
        for start in (8, 13, 20):
            for length in (1, 3, 9):  # within a token, and over several
                stop = text[start : start + length]
                answer = await told(served, path, **body, stop=stop)
                assert stop not in answer.text()
                if "best_of" not in body:  # another candidate may be the best
                    assert answer.text() == text[: text.index(stop)]
                    assert answer.choices()[-1]["finish_reason"] == "stop"


async def test_a_quiet_stream_is_kept_alive(serve: Serve, make_config: MakeConfig) -> None:
    config = make_config(server={"keep_alive_s": 0.05, "policy_poll_s": 5})
    async with serve(config) as served:
        engine = Held(served.engine)
        sent = REFERENCE | {"best_of": 2, "stream": True}
        async with served.client.stream("POST", CHAT, json=sent) as response:
            told_frames = frames(response)
            beats = [await anext(told_frames) for _ in range(3)]  # before there is an answer
            engine.let_go()
            answer = Told(response.headers, [frame async for frame in told_frames])
    assert beats == [": keep-alive"] * 3
    assert answer.done
    assert kinds(Told(answer.headers, [f for f in answer.frames if f[0] != ":"])) == [
        "role", "content", "finish", "done",
    ]  # fmt: skip


@pytest.mark.parametrize(("pause_s", "beats"), [(0.09, 0), (0.35, 2)])
def test_a_stream_that_speaks_is_not_kept_alive(pause_s: float, beats: int) -> None:
    sent: list[bytes] = []

    async def events() -> AsyncGenerator[str]:
        for number in range(10):
            yield f"piece {number}"
            await asyncio.sleep(pause_s if number == 4 or not beats else 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def all_of_it() -> None:
        stream = EventStream(events(), {}, str, keep_alive_s=0.1, send_timeout_s=60)
        await stream({"type": "http"}, receive, send)

    run_skipping(all_of_it())
    pieces = [body.decode() for body in sent if body]
    assert [p for p in pieces if p[0] != ":"] == [f"data: piece {n}\n\n" for n in range(10)]
    assert pieces.count(": keep-alive\n\n") == beats
    assert pieces[5 : 5 + beats] == [": keep-alive\n\n"] * beats


async def test_a_row_is_committed_before_the_finish_is_told(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:
        completions = served.gateway.store.completions
        for path, body in ASKS:
            sent = body | {"stream": True}
            text = ""
            async with served.client.stream("POST", path, json=sent) as response:
                finished = 0
                async for frame in frames(response):
                    for choice in Told(response.headers, [frame]).choices():
                        text += said(choice)
                        finished += choice["finish_reason"] is not None
                    if finished:
                        break
            id_ = Told(response.headers, [frame]).chunks[0]["id"].partition("-")[2]
            row = await completions.get(id_)
            assert row is not None
            assert row.status == "ok"
            best = {c.index: c for c in row.candidates}[row.chosen[0]]
            assert best.completion.text == text
