"""Who is let in: keys, scopes, and a table that names every route."""

import re
from typing import Any

import httpx
import pytest
from api_keys import bearer, make_key
from running_gateway import MODEL, MakeConfig, Run, Running

from bond_server.access.rules import INFER, OPEN, RULES, rule_of
from bond_server.app import ROUTERS, create_app

HI = {"messages": [{"role": "user", "content": "hi"}]}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "x-request-id" in response.headers
    return response.json()["error"]


def routes_of(make_config: MakeConfig) -> set[tuple[str, str]]:
    declared = {
        (method, route.path)  # type: ignore[attr-defined]
        for router in ROUTERS
        for route in router.routes
        for method in route.methods  # type: ignore[attr-defined]
    }
    app = create_app(make_config())
    described = {
        (method.upper(), path) for path, ways in app.openapi()["paths"].items() for method in ways
    }
    plain = {
        (method, path)
        for route in app.routes
        if (path := getattr(route, "path", None)) is not None
        for method in getattr(route, "methods", None) or ()
    }
    return declared | described | plain


def test_every_route_is_in_the_table_and_every_row_is_a_route(make_config: MakeConfig) -> None:
    def plain(rows: set[tuple[str, str]]) -> set[tuple[str, str]]:
        return {(method, path.replace(":path}", "}")) for method, path in rows}

    assert plain(routes_of(make_config)) == plain(set(RULES))


def test_a_path_finds_the_row_of_its_route_and_what_is_in_none_is_closed() -> None:
    assert rule_of("GET", "/v1/models/a/b:c@v1").path == "/v1/models/{model_id:path}"
    assert rule_of("GET", "/v1/policies/v0001").path == "/v1/policies/{version}"
    for method, path in [
        ("GET", "/"), ("POST", "/healthz"), ("GET", "/healthz/"), ("GET", "/HEALTHZ"),
        ("DELETE", "/v1/models/x"), ("GET", "/v1/policies/v1/x"), ("GET", "//healthz"),
    ]:  # fmt: skip
        assert not rule_of(method, path).is_open, path
    assert {path for (_, path), scopes in RULES.items() if scopes == OPEN} == {
        "/healthz", "/readyz",
    }  # fmt: skip
    limited = {path for (_, path), scopes in RULES.items() if scopes == INFER}
    assert all(rule_of("POST", path).is_limited for path in limited)


async def test_without_a_key_everyone_may_do_everything(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        assert (await running.post("/v1/distilled")).status_code == 200
        assert (await running.client.get("/metrics")).status_code == 200
        sdk = await running.client.post("/v1/distilled", json=HI, headers=bearer("anything"))
        assert sdk.status_code == 200  # the SDKs send a key always


async def test_with_a_key_only_health_is_open(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        await make_key(running, ["read"])
        for method, path in [*RULES, ("GET", "/v1/nothing"), ("GET", "/"), ("PUT", "/v1/models")]:
            url = re.sub(r"\{[^}]+\}", "v0000", path)
            response = await running.client.request(method, url, json=HI)
            if RULES.get((method, path)) == OPEN:
                assert response.status_code == 200
            elif method == "HEAD":
                assert response.status_code == 401
            else:
                error = error_of(response, 401)
                assert (error["type"], error["code"], error["param"]) == (
                    "invalid_request_error", "invalid_api_key", None,
                )  # fmt: skip
                assert "Authorization: Bearer" in error["message"]
                assert response.headers["www-authenticate"] == "Bearer"
        assert await running.gateway.store.completions.count() == 0
        labels = {"route": "/v1/distilled", "method": "POST", "code": "401"}
        assert running.metric("bond_http_requests_total", **labels) == 1


async def test_wrong_keys_are_refused_before_the_body_is_read(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["infer"])
        other = secret[:-1] + ("A" if secret[-1] != "A" else "B")
        unknown = "sk-bond-000000000000-" + secret[-43:]
        for header in [
            bearer(other), bearer(unknown), bearer("sk-other"), bearer(""), bearer(secret + "A"),
            {"authorization": secret}, {"authorization": f"Basic {secret}"}, {"api-key": secret},
            {b"authorization": b"Bearer \xff"},  # type: ignore[dict-item]
        ]:  # fmt: skip
            response = await running.client.post(
                "/v1/distilled", content=b"not even JSON", headers=header
            )
            error = error_of(response, 401)
            assert error["code"] == "invalid_api_key"
            assert secret[-43:] not in error["message"]
            assert other[-43:] not in error["message"]
            if header.get("authorization") in (secret, "Bearer sk-other"):
                assert "send the header Authorization: Bearer sk-bond-" in error["message"]
        good = await running.client.post(
            "/v1/distilled", json=HI, headers={"Authorization": f"bearer  {secret} "}
        )
        assert good.status_code == 200


async def test_stored_completions_are_read_and_changed_by_their_scopes(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        secrets = {
            name: (await make_key(running, [name]))[1] for name in ("infer", "read", "admin")
        }
        secrets["other"] = (await make_key(running, ["infer"]))[1]
        asked = await running.client.post(
            "/v1/chat/completions", json={"model": MODEL, **HI}, headers=bearer(secrets["infer"])
        )
        one = f"/v1/chat/completions/{asked.json()['id']}"
        for method, url, scope in [
            ("GET", one, "read"),
            ("GET", f"{one}/messages", "read"),
            ("POST", one, "admin"),
            ("DELETE", one, "admin"),
        ]:
            for name, secret in sorted(secrets.items(), key=lambda item: item[0] == scope):
                if (method, name) == ("DELETE", "infer"):
                    continue  # it may, and then nobody else could
                response = await running.client.request(
                    method, url, headers=bearer(secret), json={"metadata": {"a": "b"}}
                )
                expected = {scope: 200, "infer": 200, "other": 404}.get(name, 403)
                if (method, name) == ("POST", "admin"):
                    expected = 404  # its answer would show what this key may not read
                assert response.status_code == expected, (method, url, name)


async def test_a_key_sees_and_changes_its_own_completions_and_nobody_elses(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        _, mine = await make_key(running, ["infer"])
        _, theirs = await make_key(running, ["infer"])
        _, reader = await make_key(running, ["read"])

        async def ask(secret: str) -> str:
            body = {"model": MODEL, **HI}
            path = "/v1/chat/completions"
            return (await running.client.post(path, json=body, headers=bearer(secret))).json()["id"]

        async def listed(secret: str, **query: str) -> list[str]:
            response = await running.client.get(
                "/v1/chat/completions", params=query, headers=bearer(secret)
            )
            return [item["id"] for item in response.json()["data"]]

        ids = [await ask(mine), await ask(theirs), await ask(mine)]
        assert await listed(mine) == [ids[0], ids[2]]
        assert await listed(theirs) == [ids[1]]
        assert await listed(reader) == ids
        assert await listed(mine, after=ids[0]) == [ids[2]]
        foreign = await running.client.get(
            "/v1/chat/completions", params={"after": ids[1]}, headers=bearer(mine)
        )
        assert error_of(foreign, 400)["param"] == "after"
        one = f"/v1/chat/completions/{ids[0]}"
        for method in ("GET", "POST", "DELETE"):
            response = await running.client.request(
                method, one, json={"metadata": {}}, headers=bearer(theirs)
            )
            assert error_of(response, 404)["code"] == "completion_not_found"
        assert (await running.client.delete(one, headers=bearer(mine))).status_code == 200
        assert await listed(reader) == ids[1:]
        export = await running.client.get("/v1/export", headers=bearer(mine))
        assert error_of(export, 403)["code"] == "missing_scope"


ASKS = {"/v1/chat/completions", "/v1/best-of-n", "/v1/distilled", "/v1/compare"}
LISTS = {"/v1/models", "/v1/models/{model_id:path}"}
LOOKS = {
    "/v1/policies", "/v1/policies/{version}", "/v1/training", "/metrics", "/v1/export",
    "/v1/deletions",
}  # fmt: skip
CHANGES = {"/v1/users/{user:path}/completions"}
ANY_KEY = {"/openapi.json", "/v1/session"}


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        (["infer"], ASKS | LISTS | ANY_KEY),
        (["read"], LOOKS | LISTS | ANY_KEY),
        (["admin"], ANY_KEY | CHANGES),
        (["infer", "read"], ASKS | LOOKS | LISTS | ANY_KEY),
    ],
)
async def test_a_key_may_what_its_scopes_say(
    run: Run, make_config: MakeConfig, scopes: list[str], may: set[str]
) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, scopes)
        for (method, path), needed in RULES.items():
            if needed == OPEN:
                continue
            if "GET" in method and path == "/v1/chat/completions":
                continue  # the path of two routes, see test_stored_completions_have_scopes
            url = path.replace("{model_id:path}", MODEL).replace("{version}", "v0000")
            url = url.replace("{user:path}", "nobody")
            response = await running.client.request(
                method, url, headers=bearer(secret), json={"model": MODEL, **HI}
            )
            if path in ASKS | LISTS | LOOKS | CHANGES | ANY_KEY:
                assert response.is_success is (path in may), (path, response.text)
            if response.status_code == 403:
                error = error_of(response, 403)
                assert error["code"] == "missing_scope"
                assert all(scope in error["message"] for scope in needed)
                assert not needed & set(scopes)
        nowhere = await running.client.get("/v1/nothing", headers=bearer(secret))
        assert error_of(nowhere, 404)["code"] == "route_not_found"


async def test_the_row_names_the_key(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        anonymous = (await running.post("/v1/distilled")).json()["id"].removeprefix("chatcmpl-")
        key, secret = await make_key(running, ["infer"])
        response = await running.client.post("/v1/distilled", json=HI, headers=bearer(secret))
        named = response.json()["id"].removeprefix("chatcmpl-")
        rows = {r.id: r for r in await read_all(running, [anonymous, named])}
    assert (rows[anonymous].key, rows[named].key) == (None, key.id)
    assert rows[named].unit != key.id  # a backend with one key is many users


async def read_all(running: Running, ids: list[str]) -> list[Any]:
    return await running.gateway.store.completions.get_many(ids)
