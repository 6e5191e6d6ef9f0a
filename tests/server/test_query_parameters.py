"""A query parameter that a route does not know is refused by name, on every route."""

from typing import Any

import pytest
from api_keys import bearer, make_key
from fastapi.routing import APIRoute
from openai import AsyncOpenAI
from running_gateway import MODEL, MakeConfig, Run
from served_gateway import HI, Serve

from bond_server.access.query import METADATA, parameters_of
from bond_server.access.rules import RULES
from bond_server.app import ROUTERS

KNOWN = parameters_of(ROUTERS)
PAGES = {"after", "limit", "order"}


def test_the_parameters_of_each_route() -> None:
    assert {key: set(names) for key, names in KNOWN.items() if names} == {
        ("GET", "/v1/training"): {"evaluations", "since"},
        ("GET", "/v1/chat/completions"): PAGES | {"model", METADATA},
        ("GET", "/v1/chat/completions/{completion_id}/messages"): PAGES,
        ("GET", "/v1/export"): {"model", "since", "until", "after", METADATA},
        ("GET", "/v1/deletions"): {"user", "limit"},
    }
    routes = [route for router in ROUTERS for route in router.routes]
    assert {route.path for route in routes if isinstance(route, APIRoute)} == {p for _, p in KNOWN}


@pytest.mark.parametrize(("method", "path"), list(RULES))
async def test_every_route_refuses_what_it_does_not_know(
    run: Run, make_config: MakeConfig, method: str, path: str
) -> None:
    async with run(make_config()) as running:
        filled = path.replace("{model_id:path}", MODEL).replace("{user:path}", "somebody")
        filled = filled.replace("{completion_id}", "chatcmpl-1").replace("{version}", "v0000")
        response = await running.client.request(method, filled, params={"colour": "red"})
        assert response.status_code == 400
        if method != "HEAD":
            error = response.json()["error"]
            assert (error["param"], error["code"]) == ("colour", "unknown_parameter")
        assert (
            running.metric("bond_http_requests_total", route=path, method=method, code="400") == 1
        )


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("/v1/chat/completions", "limt=3", "'limt'; did you mean 'limit'?"),
        ("/v1/chat/completions", "limit=3&by=x", "after, limit, metadata[KEY], model, order"),
        ("/v1/training", "evaluation=1", "did you mean 'evaluations'?"),
        ("/v1/policies", "limit", "'limit'; this route takes none"),
        ("/v1/chat/completions/x/messages", "metadata[a]=b", "takes after, limit, order"),
        ("/v1/deletions", "caf%C3%A9=1", "'café'"),
        ("/v1/models", "%FF=1", "there is no query parameter"),
    ],
)  # fmt: skip
async def test_it_is_named_with_the_nearest_known_one(
    run: Run, make_config: MakeConfig, path: str, query: str, says: str
) -> None:
    async with run(make_config()) as running:
        response = await running.client.get(f"{path}?{query}")
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


async def test_what_is_documented_is_taken(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        told: dict[str, Any] = {"metadata": {"team": "a"}}
        first = (await running.post("/v1/distilled", **told)).json()["id"]
        second = (await running.post("/v1/distilled", **told)).json()["id"]
        get = running.client.get
        query = f"model={MODEL}:distilled&metadata[team]=a&limit=5&order=asc&after={first}"
        page = await get(f"/v1/chat/completions?{query}")
        assert [item["id"] for item in page.json()["data"]] == [second]
        assert (await get(f"/v1/chat/completions/{first}/messages?limit=1")).status_code == 200
        assert (await get("/v1/training?evaluations=3&since=1.5")).status_code == 200
        assert (await get(f"/v1/export?since=1&until=2&after={first}")).status_code == 200
        assert (await get("/v1/deletions?limit=2&user=me")).status_code == 200
        assert (await get("/v1/nowhere?colour=red")).status_code == 404


async def test_who_has_no_key_learns_nothing_of_parameters(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["read"])
        assert (await running.client.get("/v1/policies?a=b")).status_code == 401
        known = await running.client.get("/v1/policies?a=b", headers=bearer(secret))
        assert known.status_code == 400


async def test_the_openai_package_sends_what_is_known(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with (
        serve(make_config()) as served,
        AsyncOpenAI(api_key="unused", base_url=f"{served.url}/v1") as client,
    ):
        made = await client.chat.completions.create(
            model=f"{MODEL}:reference", messages=HI, metadata={"team": "a"}, store=True
        )
        page = await client.chat.completions.list(
            model=f"{MODEL}:reference", metadata={"team": "a"}, limit=3, order="desc"
        )
        assert [item.id for item in page.data] == [made.id]
        messages = await client.chat.completions.messages.list(made.id, limit=2, order="asc")
        assert len(messages.data) == 1
        assert MODEL in [model.id async for model in client.models.list()]
