"""Reading a body straight into its model tells callers the same as the framework's way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from running_gateway import MODEL, MakeConfig, Run, eventually
from served_gateway import Serve

from bond_core.config import AccessConfig
from bond_server.app import ANSWERING
from bond_server.shedding import ANSWERING as ADMITTED

HI = b'{"messages": [{"role": "user", "content": "hi"}], "seed": 3'
BODIES = [
    HI + b"}",
    HI + b', "logit_bias": {"7": -3}, "stop": "x", "temperature": 1}',
    HI + b', "n": 1.0}',
    HI + b', "n": "2", "best_of": 4}',
    HI + b', "n": 0}',
    HI + b', "temperature": NaN}',
    HI + b', "temperature": Infinity}',
    HI + b', "max_tokens": 123456789012345678901234567890}',
    HI + b', "nonsense": 1}',
    HI + b', "n": 1, "n": 2}',
    HI + b', "user": "\\ud800"}',
    HI + "}".encode("utf-16"),
    HI + b', "metadata": {"a": "b"}, "store": "yes"}',
    b'{"messages": []}',
    b"[]",
    b"null",
    b"",
    b"{",
    b'{"messages": "hi"}',
    b"\xff",
]


def comparable(body: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs between two of the same."""
    for key in ("id", "created"):
        body.pop(key, None)
    body.get("bond", {}).pop("timings", None)
    return body


@pytest.mark.parametrize("content", BODIES)
async def test_both_ways_tell_the_same(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    headers = {"content-type": "application/json"}
    async with run(make_config()) as running:
        ours = await running.client.post("/v1/distilled", content=content, headers=headers)
    monkeypatch.setattr("bond_server.app.DirectMiddleware", lambda app, routers: app)
    async with run(make_config()) as running:
        theirs = await running.client.post("/v1/distilled", content=content, headers=headers)
    assert ours.status_code == theirs.status_code
    assert comparable(ours.json()) == comparable(theirs.json())


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_a_body_that_is_not_declared_as_json_is_refused_as_before(
    run: Run, make_config: MakeConfig, content_type: str
) -> None:
    async with run(make_config()) as running:
        response = await running.client.post(
            "/v1/distilled", content=HI + b"}", headers={"content-type": content_type}
        )
        declared = await running.client.post(
            "/v1/distilled",
            content=HI + b"}",
            headers={"content-type": "application/json; charset=utf-8"},
        )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_body"
    assert declared.status_code == 200
    assert declared.json()["model"] == f"{MODEL}:distilled"


def test_every_route_whose_work_is_admitted_goes_the_direct_way() -> None:
    paths = [route.path for router in ANSWERING for route in router.routes]
    assert set(paths) == ADMITTED


@pytest.mark.parametrize("way", ["direct", "the framework's"])
async def test_a_body_over_its_bounds_is_refused_and_the_gateway_goes_on(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way != "direct":
        monkeypatch.setattr("bond_server.app.DirectMiddleware", lambda app, routers: app)
    headers = {"content-type": "application/json"}
    access = AccessConfig(max_body_bytes=2000, max_json_depth=8)

    async def chunks() -> AsyncIterator[bytes]:  # so that no length is declared
        for _ in range(4):
            yield b" " * 1000

    async with run(make_config(access=access)) as running:
        deep, long, undeclared = [
            await running.client.post("/v1/distilled", content=content, headers=headers)
            for content in (b"[" * 9 + b"]" * 9, b" " * 2001, chunks())
        ]
        after = await running.client.post("/v1/distilled", content=HI + b"}", headers=headers)
    told = [(r.status_code, r.json()["error"]["code"]) for r in (deep, long, undeclared)]
    assert told == [(400, "body_too_deep"), (413, "body_too_large"), (413, "body_too_large")]
    assert after.status_code == 200


@pytest.mark.parametrize("declared", ["content-length: 500", "transfer-encoding: chunked"])
@pytest.mark.parametrize("way", ["direct", "the framework's"])
async def test_a_body_that_its_client_breaks_off_counts_as_closed_by_the_client(
    serve: Serve, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, way: str, declared: str
) -> None:
    path = "/v1/distilled"
    if way != "direct":
        monkeypatch.setattr("bond_server.app.DirectMiddleware", lambda app, routers: app)
    async with serve(make_config()) as served:
        _, writer = await asyncio.open_connection(served.host, served.port)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{declared}"
        writer.write(head.encode() + b'\r\n\r\n7\r\n{"messa')
        await writer.drain()
        writer.close()

        def counted(code: str) -> float:
            labels = {"route": path, "method": "POST", "code": code}
            return served.metric("bond_http_requests_total", **labels)

        async def is_closed() -> bool:
            return counted("499") == 1 and not served.connections

        await eventually(is_closed)
        assert served.engine.drawn == 0  # what came of the body was not taken for all of it
        assert served.metric("bond_assignments_total", arm="distilled", experiment="") == 0
        assert await served.gateway.store.completions.count() == 0
        whole = await served.client.post(path, json=json.loads(HI + b"}"))
        assert whole.status_code == 200
        assert (counted("200"), counted("499")) == (1, 1)
