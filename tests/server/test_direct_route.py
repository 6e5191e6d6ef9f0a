"""Reading a body straight into its model tells callers the same as the framework's way."""

from typing import Any

import pytest
from fastapi.routing import APIRoute
from running_gateway import MODEL, MakeConfig, Run

from bond_server.routes import best_of_n, chat, compare, completions, distilled
from bond_server.routes.direct import DirectRoute

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
    monkeypatch.setattr(DirectRoute, "get_route_handler", APIRoute.get_route_handler)
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


def test_every_answering_route_goes_the_direct_way() -> None:
    for module in (chat, completions, best_of_n, distilled, compare):
        assert [type(route) for route in module.router.routes] == [DirectRoute]
