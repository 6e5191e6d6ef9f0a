"""What people write and what they are answered is in no text log, at any level."""

import logging
from typing import Any

import pytest
from disconnecting import disconnecting_post
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
