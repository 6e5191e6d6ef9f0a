"""The pooling scorer against a server that fails in every way that one was seen or feared to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from faulty_pooling_server import (
    MAX_TOKENS,
    MODEL,
    Fault,
    FaultyPoolingServer,
    broken_off,
    formula,
    hang,
    item,
    no_http,
    redirected,
    reset,
    running_server,
    vllm_error,
)
from tiny_models import make_tokenizer

from bond_core.config import PoolingScorerConfig
from bond_core.errors import ScorerUnavailableError, ScoringError
from bond_core.rewards import Scorer, build_scorer
from bond_core.types import Message

PROMPT = [Message("user", "Where is my order?")]
ANSWERS = [f"answer number {i}" for i in range(7)]


@pytest.fixture
async def server() -> AsyncIterator[FaultyPoolingServer]:
    async with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is needed of the reward model here: its tokenizer and template."""
    path = tmp_path_factory.mktemp("reward") / "tiny-reward"
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(params=["here", "there"])
def path(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    """For both renderings."""
    return folder if request.param == "here" else None


@asynccontextmanager
async def connected(server: FaultyPoolingServer, **settings: Any) -> AsyncIterator[Scorer]:
    scorer = build_scorer(PoolingScorerConfig(url=server.url, **{"self_test": None, **settings}))
    await scorer.start()
    server.forget()
    try:
        yield scorer
    finally:
        await scorer.close()


def expected(server: FaultyPoolingServer, answer: str, question: str = PROMPT[0].content) -> float:
    return formula(server.tokens(("user", question), ("assistant", answer)))


async def test_scores_are_the_servers_numbers_in_order(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    async with connected(server, path=path) as scorer:
        scores = await scorer.score([PROMPT] * 7, ANSWERS)
        assert scores == [expected(server, answer) for answer in ANSWERS]
        assert len(set(scores)) == 7
    assert all(body["model"] == MODEL for body in server.bodies)
    assert all(body["use_activation"] is False for body in server.bodies)


async def test_rendered_here_many_go_in_one_request_and_equal_ones_once(
    server: FaultyPoolingServer, folder: Path
) -> None:
    async with connected(server, path=folder, batch_size=3) as scorer:
        repeated = [*ANSWERS, *ANSWERS[::-1], ANSWERS[0]]
        scores = await scorer.score([PROMPT] * 15, repeated)
    assert scores == [expected(server, answer) for answer in repeated]
    assert sorted(len(sequences) for sequences in server.asked) == [1, 3, 3]
    assert len({tokens for sequences in server.asked for tokens in sequences}) == 7


async def test_rendered_there_each_is_a_request_and_only_so_many_at_once(
    server: FaultyPoolingServer,
) -> None:
    async with connected(server, batch_size=3) as scorer:
        server.fault = slowly
        scores = await asyncio.gather(
            scorer.score([PROMPT] * 14, ANSWERS * 2), scorer.score([PROMPT], ["another"])
        )
    assert scores[0] == [expected(server, answer) for answer in ANSWERS * 2]
    assert scores[1] == [expected(server, "another")]
    assert len(server.bodies) == 8
    assert server.max_running == 3
    assert all(body["add_generation_prompt"] is False for body in server.bodies)


async def test_a_whole_conversation_with_its_system_prompt_is_scored(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    prompt = [
        Message("system", "Be kind."),
        Message("user", "Hello"),
        Message("assistant", "Hi"),
        Message("user", "Thanks"),
    ]
    async with connected(server, path=path) as scorer:
        await scorer.score([prompt], ["Bye"])
    turns = [(message.role, message.content) for message in prompt]
    assert server.asked == [[server.tokens(*turns, ("assistant", "Bye"))]]


async def test_many_calls_at_once_get_their_own_scores(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    async with connected(server, path=path) as scorer:
        questions = [f"question {i}" for i in range(40)]
        found = await asyncio.gather(
            *(scorer.score([[Message("user", q)]] * 2, ["yes", "no"]) for q in questions)
        )
    assert found == [[expected(server, a, q) for a in ("yes", "no")] for q in questions]


async def test_the_order_is_that_of_the_index(server: FaultyPoolingServer, folder: Path) -> None:
    async with connected(server, path=folder) as scorer:
        server.fault = changed(lambda data: data[::-1])
        scores = await scorer.score([PROMPT] * 7, ANSWERS)
    assert scores == [expected(server, answer) for answer in ANSWERS]


@pytest.mark.parametrize("key", ["sk-secret", None])
async def test_the_key_goes_with_every_request(
    server: FaultyPoolingServer, key: str | None
) -> None:
    server.key = key
    async with connected(server, api_key=key) as scorer:
        await scorer.score([PROMPT], ["a"])
    assert server.keys == {f"Bearer {key}" if key else None}


def answering(text: str | bytes, status: int = 200) -> Fault:
    async def fault(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
        body = text.encode() if isinstance(text, str) else text
        return web.Response(body=body, status=status, content_type="application/json")

    return fault


def changed(change: Callable[[list[dict[str, Any]]], object]) -> Fault:
    """The honest answer with other data."""

    async def fault(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
        return web.Response(text=json.dumps({"object": "list", "data": change(data)}))

    return fault


def scored(value: object) -> Fault:
    """`value` in the place of the first score."""
    return changed(lambda data: [item(0, value), *data[1:]])


async def slowly(request: web.Request, data: list[dict[str, Any]]) -> None:
    await asyncio.sleep(0.02)


GARBAGE: dict[str, tuple[Fault, str]] = {
    "no JSON": (answering("<html>It works!</html>"), r"not JSON \(<html>It works!</html>\)"),
    "nothing": (answering(""), r"not JSON \(an empty body\)"),
    "no UTF-8": (answering(b"\xff\xfe{}"), "not JSON"),
    "nested": (answering("[" * 100_000), "not JSON"),
    "another object": (answering('{"choices": []}'), "without a list of scores"),
    "a list": (answering("[1, 2]"), "without a list of scores"),
    "data null": (answering('{"data": null}'), "without a list of scores"),
    "data of numbers": (changed(lambda data: [1.0] * len(data)), "in no form that is known"),
    "too few": (changed(lambda data: data[1:]), "6 scores for 7 conversations"),
    "too many": (changed(lambda data: [*data, item(7, 1.0)]), "8 scores for 7 conversations"),
    "one twice": (changed(lambda data: [data[1], *data[1:]]), "number 1 among 7 twice"),
    "none of ours": (changed(lambda data: [*data[:-1], item(9, 0.1)]), "number 9 among 7"),
    "negative": (changed(lambda data: [item(-1, 0.1), *data[1:]]), "number -1 among 7"),
    "no index": (
        changed(lambda data: [{**d, "index": None} for d in data]),
        "in no form that is known",
    ),
    "index true": (
        changed(lambda data: [{**d, "index": True} for d in data]),
        "in no form that is known",
    ),
    "two numbers": (
        changed(lambda data: [{**d, "probs": [0.1, 0.9], "num_classes": 2} for d in data]),
        r"2 numbers for one conversation \(num_classes 2\)",
    ),
    "no number": (changed(lambda data: [{**d, "probs": []} for d in data]), "0 numbers for one"),
    "more classes": (
        changed(lambda data: [{**d, "num_classes": 2} for d in data]),
        r"1 numbers for one conversation \(num_classes 2\)",
    ),
    "a bare number": (
        changed(lambda data: [{**d, "probs": 0.5} for d in data]),
        "in no form that is known",
    ),
    "null": (scored(None), "answered None where a score should be"),
    "text": (scored("0.5"), "answered '0.5' where a score should be"),
    "true": (scored(True), "answered True where a score should be"),
    "redirect": (redirected, "cannot score now .302"),
    "busy": (answering("try later", 503), r"cannot score now \(503: try later\)"),
    "limited": (answering("slow down", 429), r"cannot score now \(429: slow down\)"),
    "unknown model": (
        answering('{"error": {"message": "The model `x` does not exist."}}', 404),
        r"404: The model `x` does not exist\.\): serve a reward model .* with --runner pooling",
    ),
    "key": (answering('{"error": "Unauthorized"}', 401), r"refused the API key \(401: Unautho"),
    "broken off": (broken_off, "broke off in the middle of an answer"),
    "no HTTP": (no_http, "does not speak HTTP as it should"),
    "hangs": (hang, r"took longer than 2 s: .*timeout_s"),
    "resets": (reset, "cannot be reached"),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_the_servers_fault(
    server: FaultyPoolingServer, folder: Path, kind: str
) -> None:
    async with connected(server, path=folder, timeout_s=2 if kind == "hangs" else 60) as scorer:
        server.fault, message = GARBAGE[kind]
        with pytest.raises(ScorerUnavailableError, match=message) as caught:
            await scorer.score([PROMPT] * 7, ANSWERS)
        assert server.url in str(caught.value)
        assert len(server.bodies) == (2 if kind == "resets" else 1)
        server.fault = None  # and then it goes on
        assert await scorer.score([PROMPT], ["a"]) == [expected(server, "a")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("NaN", "nan"),
        ("Infinity", "inf"),
        ("-Infinity", "-inf"),
        ("1e999", "inf"),
        ("1" + "0" * 400, "inf"),
    ],
)
async def test_a_score_that_is_not_finite_is_named(
    server: FaultyPoolingServer, folder: Path, text: str, shown: str
) -> None:
    async with connected(server, path=folder) as scorer:
        whole = [item(0, 1.5), item(1, 987654321)]
        server.fault = answering(json.dumps({"data": whole}).replace("987654321", text))
        with pytest.raises(ScoringError, match=rf"gave {shown} for completion 2") as caught:
            await scorer.score([PROMPT] * 3, ["a", "a", "b"])
        assert type(caught.value) is ScoringError


@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_what_is_refused_for_its_own_sake_is_no_outage(
    server: FaultyPoolingServer, status: int
) -> None:
    async def fault(request: web.Request, data: list[dict[str, Any]]) -> web.Response | None:
        body = await request.json()
        bad = body["messages"][-1]["content"] == "bad"
        return vllm_error(status, "template refused") if bad else None

    async with connected(server) as scorer:
        server.fault = fault
        with pytest.raises(ScoringError, match=rf"completion 1: .*{status}: template") as caught:
            await scorer.score([PROMPT] * 3, ["good", "bad", "good"])
        assert type(caught.value) is ScoringError


async def test_too_long_a_conversation_is_named_with_its_tokens_and_never_cut(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    fits = "a" * (MAX_TOKENS - len(server.tokens(("user", PROMPT[0].content), ("assistant", ""))))
    async with connected(server, path=path) as scorer:
        scores = await scorer.score([PROMPT] * 2, [fits, "a"])
        assert scores == [expected(server, fits), expected(server, "a")]
        server.forget()
        with pytest.raises(ScoringError, match=rf"completion 1.* {MAX_TOKENS + 1} .*") as caught:
            await scorer.score([PROMPT] * 2, ["a", f"{fits}a"])
        assert type(caught.value) is ScoringError
        assert "--max-model-len" in str(caught.value)
        if path is not None:
            assert server.bodies == []


async def test_a_connection_that_fails_before_an_answer_is_tried_once_more(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    async def once(request: web.Request, data: list[dict[str, Any]]) -> web.Response | None:
        server.fault = None
        return await reset(request, data)

    async with connected(server, path=path) as scorer:
        server.fault = once
        assert await scorer.score([PROMPT], ["a"]) == [expected(server, "a")]
    assert len(server.bodies) == 2
    assert server.asked[0] == server.asked[1]


async def test_a_server_that_is_away_is_found_again(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    async with connected(server, path=path) as scorer:
        await server.stop()
        with pytest.raises(ScorerUnavailableError, match="cannot be reached"):
            await scorer.score([PROMPT], ["a"])
        await server.start()
        assert await scorer.score([PROMPT], ["a"]) == [expected(server, "a")]


async def test_the_first_failure_ends_the_other_requests(server: FaultyPoolingServer) -> None:
    async def one_fails(request: web.Request, data: list[dict[str, Any]]) -> web.Response | None:
        body = await request.json()
        if body["messages"][-1]["content"] == ANSWERS[3]:
            return vllm_error(503, "overloaded")
        await asyncio.sleep(30)
        return None

    async with connected(server) as scorer:
        server.fault = one_fails
        with pytest.raises(ScorerUnavailableError, match="503: overloaded"):
            await asyncio.wait_for(scorer.score([PROMPT] * 7, ANSWERS), 25)
        assert await heard(lambda: server.cancelled == 6)


async def test_a_caller_that_goes_away_takes_its_request_along(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    async with connected(server, path=path) as scorer:
        server.fault = hang
        asking = asyncio.create_task(scorer.score([PROMPT], ["a"]))
        assert await heard(lambda: server.running == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await heard(lambda: server.cancelled == 1)
        server.fault = None
        assert await scorer.score([PROMPT], ["a"]) == [expected(server, "a")]


async def test_closing_ends_what_is_under_way_and_what_waits(server: FaultyPoolingServer) -> None:
    async with connected(server, batch_size=1) as scorer:
        server.fault = hang
        asking = [asyncio.create_task(scorer.score([PROMPT], [a])) for a in ("a", "b")]
        assert await heard(lambda: server.running == 1)
        await scorer.close()
        for ended in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(ended, ScoringError)
            assert "was closed" in str(ended)
        with pytest.raises(ScoringError, match="not running"):
            await scorer.score([PROMPT], ["a"])
        server.fault = None
        await scorer.start()
        assert await scorer.score([PROMPT], ["a"]) == [expected(server, "a")]


async def test_an_empty_prompt_is_an_error(server: FaultyPoolingServer, path: Path | None) -> None:
    async with connected(server, path=path) as scorer:
        with pytest.raises(ScoringError, match="messages is empty"):
            await scorer.score([PROMPT, []], ["a", "b"])


async def heard(condition: Callable[[], bool]) -> bool:
    """Whether the server comes to this within some seconds."""
    for _ in range(6000):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False
