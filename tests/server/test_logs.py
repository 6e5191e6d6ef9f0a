"""The log: one line per request, ids on every line, no content, no keys, no floods."""

import io
import json
import logging
from collections.abc import Generator
from typing import Any

import pytest
from running_gateway import MakeConfig, Run, settled

from bond_server.logs import REQUEST_ID, JsonLines, Repeated, TextLines, configure

SECRET = "xyzzy-the-secret-word"


@pytest.fixture
def stream() -> Generator[io.StringIO]:
    """What the process writes as JSON lines; logging is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    configure("json", written)
    yield written
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_one_line_per_request_with_route_status_time_and_arm(
    run: Run, make_config: MakeConfig, stream: io.StringIO
) -> None:
    async with run(make_config()) as running:
        headers = {"x-request-id": "asked-1"}
        await running.client.post(
            "/v1/best-of-n", json={"messages": [{"role": "user", "content": "hi"}]}, headers=headers
        )
        await running.post("/v1/distilled", n=0)
        await running.client.get(f"/v1/policies/{SECRET}")
        await running.client.get(f"/{SECRET}")
    access = [line for line in lines(stream) if line["logger"] == "bond.access"]
    told = [(line["method"], line["route"], line["status"], line["arm"]) for line in access]
    assert told == [
        ("POST", "/v1/best-of-n", 200, "bon"),
        ("POST", "/v1/distilled", 400, "-"),
        ("GET", "/v1/policies/{version}", 404, "-"),
        ("GET", "unmatched", 404, "-"),
    ]
    assert access[0]["request_id"] == "asked-1"
    assert len({line["request_id"] for line in access}) == 4
    assert all(0 < line["ms"] < 60_000 for line in access)
    assert access[0]["message"].startswith("POST /v1/best-of-n 200 ")
    assert REQUEST_ID.get() is None


async def test_the_access_log_can_be_turned_off(
    run: Run, make_config: MakeConfig, stream: io.StringIO
) -> None:
    async with run(make_config(server={"access_log": False})) as running:
        await running.post("/v1/best-of-n")
    assert not [line for line in lines(stream) if line["logger"] == "bond.access"]


async def test_no_line_has_content_or_keys_whatever_happens(
    run: Run, make_config: MakeConfig, stream: io.StringIO
) -> None:
    asked = {
        "messages": [{"role": "user", "content": SECRET}],
        "user": SECRET,
        "metadata": {"session_id": SECRET},
    }
    headers = {"authorization": f"Bearer {SECRET}", "x-bond-unit": SECRET}
    async with run(make_config()) as running:
        answer = await running.client.post("/v1/best-of-n", json=asked, headers=headers)
        said = answer.json()["choices"][0]["message"]["content"]
        for body in ({**asked, "n": 0}, {**asked, SECRET: 1}, {**asked, "messages": SECRET}):
            await running.client.post("/v1/best-of-n", json=body, headers=headers)
        await running.client.post("/v1/best-of-n", content=SECRET, headers=headers)
        await running.client.get("/v1/models", params={"key": SECRET}, headers=headers)
        await settled(running)
        await running.gateway.engine.close()
        failed = await running.client.post("/v1/best-of-n", json=asked, headers=headers)
    assert (answer.status_code, failed.status_code) == (200, 503)
    text = stream.getvalue()
    assert len(text.splitlines()) >= 7
    assert SECRET not in text
    assert len(said) < 8 or said not in text


async def test_a_server_that_is_away_is_one_line_and_not_one_per_request(
    run: Run, make_config: MakeConfig, stream: io.StringIO
) -> None:
    async with run(make_config()) as running:
        await running.gateway.engine.close()
        for _ in range(20):
            assert (await running.post("/v1/best-of-n")).status_code == 503
    complaints = [line for line in lines(stream) if line["level"] == "ERROR"]
    assert len(complaints) == 1
    assert "the fake engine is not running" in complaints[0]["message"]
    assert complaints[0]["request_id"] is not None


def record(text: str, *args: object, level: int = logging.WARNING, line: int = 1, **more: Any):
    return logging.LogRecord("bond.test", level, "file.py", line, text, args, None, **more)


def test_complaints_are_said_when_they_are_new_and_once_a_minute() -> None:
    now = [0.0]
    passes = Repeated(60.0, lambda: now[0]).filter
    assert passes(record("%s is away", "a"))
    assert not passes(record("%s is away", "a"))
    assert passes(record("%s is away", "b"))  # another one
    assert not passes(record("%s is away", "a"))
    assert passes(record("%s is away", "a", line=2))  # said by another call
    assert passes(record("%s is away", "a", level=logging.INFO))
    now[0] = 61.0
    again = record("%s is away", "a")
    assert passes(again)
    assert again.getMessage() == "a is away (2 more since it was last said)"
    assert not passes(record("%s is away", "a"))


def test_what_is_kept_of_complaints_is_bounded() -> None:
    repeated = Repeated(60.0, lambda: 0.0)
    for number in range(1000):
        assert repeated.filter(record("%d is away", number))
    assert sum(len(said) for said in repeated._said.values()) <= 16


def test_tracebacks_are_always_written_and_are_a_field() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        trace = (RuntimeError, error, error.__traceback__)
    defect = logging.LogRecord("bond.test", logging.ERROR, "f.py", 1, "failed", (), trace)
    repeated = Repeated(60.0, lambda: 0.0)
    assert repeated.filter(defect)
    assert repeated.filter(defect)
    line = json.loads(JsonLines().format(defect))
    assert line["message"] == "failed"
    assert "RuntimeError: broken" in line["traceback"]
    assert line["request_id"] is None


def test_lines_for_people_have_the_request_in_brackets() -> None:
    token = REQUEST_ID.set("asked-2")
    try:
        inside = TextLines().format(record("%s is slow", "it"))
    finally:
        REQUEST_ID.reset(token)
    outside = TextLines().format(record("%s is slow", "it"))
    assert inside.endswith(" WARNING bond.test [asked-2]: it is slow")
    assert outside.endswith(" WARNING bond.test: it is slow")
