"""What people write and what they are answered is in no text log, at any level."""

import json
import logging
from typing import Any

import pytest
from disconnecting import disconnecting_post
from faulty_vllm_server import MODEL, running_vllm, says
from locked_store import locked
from running_gateway import MakeConfig, Run, Running, scorer, settled

from bond_core.engines.fake import FakeEngine
from bond_core.errors import EngineUnavailableError

MARK = "xyzzy-4711-plugh"
WORDS = [{"role": "user", "content": f"my secret is {MARK}"}]

QUOTING = """
def quotes(prompts, completions, **kwargs):
    raise ValueError(f"cannot judge {prompts[0]} {completions[0]}")


def answers_with_words(prompts, completions, **kwargs):
    return [str(prompt) for prompt in prompts]


async def awaits(prompts, completions, **kwargs):
    raise ValueError(f"cannot judge {prompts[0]}")
"""


async def everything(running: Running) -> set[str]:
    """Requests of every kind that end in every way; returns the texts of the answers."""
    said: set[str] = set()
    for path, body in (
        ("/v1/best-of-n", {}),
        ("/v1/distilled", {}),
        ("/v1/distilled", {"stream": True}),
        ("/v1/best-of-n", {"stream": True}),
        ("/v1/compare", {}),
        ("/v1/best-of-n", {"best_of": 10_000}),
        ("/v1/best-of-n", {"unknown": MARK}),
        ("/v1/best-of-n", {"messages": f"not a list but {MARK}"}),
        ("/v1/distilled", {"messages": [{"role": "user", "content": MARK * 2000}]}),
    ):
        response = await running.post(path, **{"messages": WORDS, **body})
        if response.status_code == 200 and "stream" not in body:
            choices = response.json().get("choices", [])
            said |= {choice["message"]["content"] for choice in choices}
    await running.client.post(
        "/v1/distilled",
        content=f'{{"messages": "{MARK}',
        headers={"content-type": "application/json"},
    )
    for _ in range(2):
        await running.client.post(
            "/v1/best-of-n", json={"messages": WORDS}, headers={"Idempotency-Key": "k"}
        )
    await running.client.get("/v1/chat/completions")
    await running.client.get("/v1/export")
    engine = running.gateway.engine
    assert isinstance(engine, FakeEngine)
    engine.failure = EngineUnavailableError("the engine is away")
    assert (await running.post("/v1/distilled", messages=WORDS)).status_code == 503
    engine.failure = ZeroDivisionError("a defect")  # type: ignore[assignment]
    assert (await running.post("/v1/distilled", messages=WORDS)).status_code == 500
    engine.failure = None
    refuse = "CREATE TRIGGER r BEFORE INSERT ON contents BEGIN SELECT RAISE(ABORT, 'no'); END"
    database = running.gateway.store.database
    await database.write(lambda c: c.exec_driver_sql(refuse).close())
    assert (await running.post("/v1/distilled", messages=WORDS)).status_code == 503
    await database.write(lambda c: c.exec_driver_sql("DROP TRIGGER r").close())
    engine._delay_s = 5.0  # type: ignore[attr-defined]
    await disconnecting_post(running, "/v1/best-of-n", after_s=0.05)
    await settled(running)
    return {text for text in said if len(text) > 12}


def told(record: logging.LogRecord) -> str:
    """Everything that a handler could write of a record."""
    formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")
    extra = {k: v for k, v in vars(record).items() if k not in ("msg", "args", "exc_info")}
    return formatter.format(record) + repr(record.msg) + repr(record.args) + repr(extra)


@pytest.mark.parametrize("function", ["length", "quotes", "answers_with_words", "awaits"])
async def test_no_log_record_at_any_level_has_a_word_of_a_row(
    run: Run,
    make_config: MakeConfig,
    rewards_file: Any,
    caplog: pytest.LogCaptureFixture,
    function: str,
) -> None:
    rewards_file.write_text(rewards_file.read_text() + QUOTING)
    caplog.set_level(1)
    async with run(make_config(scorer=scorer(rewards_file, function))) as running:
        said = await everything(running)
    assert said
    assert {record.levelno for record in caplog.records} >= {20, 40}  # they spoke
    for record in caplog.records:
        text = told(record)
        assert MARK not in text, text
        for answer in said:
            assert answer not in text, text


def answered(**changes: Any) -> str:
    """An answer of vLLM's, with something else in it."""
    one = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop", "token_ids": [5]}
    logprobs = {"content": [{"token": "a", "logprob": -0.5}]}
    choice = {**one, "logprobs": logprobs, **changes}
    return json.dumps({"prompt_token_ids": [1], "choices": [choice]})


def event(data: str) -> str:
    return f"data: {data}\n\n"


FAULTS: dict[str, tuple[str, int]] = {
    "a reason of words": (answered(finish_reason=MARK), 200),
    "tokens of words": (answered(token_ids=[MARK]), 200),
    "numbers of words": (answered(logprobs={"content": [{"token": MARK, "logprob": MARK}]}), 200),
    "half a pair": (answered(message={"content": MARK + "\ud83d"}), 200),
    "a page": (f"<p>{MARK}</p>", 200),
    "a failure that quotes": (json.dumps({"error": {"message": f"cannot read {MARK}"}}), 500),
    "a busy server that quotes": (json.dumps({"error": {"message": f"wait with {MARK}"}}), 429),
    "an error in the stream": (event(json.dumps({"error": {"message": MARK}})), 200),
    "an error without a message": (event(json.dumps({"error": {}, "choices": [MARK]})), 200),
    "a chunk of words": (event(json.dumps({"choices": MARK})), 200),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_vllm_says_instead_of_an_answer_is_in_no_log(
    run: Run, make_config: MakeConfig, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(1)
    text, status = FAULTS[fault]
    async with running_vllm() as server:
        engine = {"type": "vllm", "urls": [server.url], "breaker_failures": 1}
        engine["health_every_s"] = (
            0.05  # so that it is tried to be made ready again, which fails too
        )
        async with run(make_config(engine=engine, model={"name": MODEL})) as running:
            server.fault = says(text, status)
            stream = text.startswith("data:")
            body = {"model": f"{MODEL}:reference", "messages": WORDS, "stream": stream}
            answer = await running.post("/v1/chat/completions", **body)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_unavailable"
            await settled(running)
    ours = [told(record) for record in caplog.records if record.name.startswith("bond")]
    assert any("POST /v1/chat/completions: " in text for text in ours)
    for text in ours:
        assert MARK not in text, text


async def test_a_user_whose_rows_cannot_be_deleted_is_not_named(
    run: Run, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    async with run(make_config(server={"policy_poll_s": 60})) as running:
        with locked(running.gateway.store, commit_timeout_s=0.2):
            answer = await running.client.delete(f"/v1/users/{MARK}/completions")
        assert answer.status_code == 503
    ours = [told(record) for record in caplog.records if record.name.startswith("bond")]
    assert any("DELETE /v1/users/{user:path}/completions: " in text for text in ours)
    assert not any(MARK in text for text in ours)
