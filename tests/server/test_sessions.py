"""A key exchanged for a cookie: what the cookie opens, and what it needs besides."""

import time
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from api_keys import bearer, make_key
from running_gateway import MakeConfig, Run, Running

HI = {"messages": [{"role": "user", "content": "hi"}]}


async def begin(running: Running, secret: str) -> httpx.Response:
    response = await running.client.post("/v1/session", headers=bearer(secret))
    assert response.status_code == 201, response.text
    return response


def cookie_of(response: httpx.Response) -> Any:
    return SimpleCookie(response.headers["set-cookie"])["bond_session"]


def code_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]["code"]


async def test_a_key_is_exchanged_for_a_cookie(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(access={"session_s": 600})) as running:
        key, secret = await make_key(running, ["read", "infer"])
        before = time.time()
        response = await begin(running, secret)
        body, cookie = response.json(), cookie_of(response)
        assert {name: body[name] for name in ("object", "open", "key", "name", "scopes")} == {
            "object": "bond.session", "open": False, "key": key.id, "name": "test",
            "scopes": ["infer", "read"],
        }  # fmt: skip
        assert 600 <= body["expires_at"] - before < 660
        assert (cookie["httponly"], cookie["samesite"], cookie["secure"]) == (True, "strict", "")
        assert (cookie["path"], cookie["max-age"], cookie["domain"]) == ("/", "600", "")
        assert secret[-43:] not in response.headers["set-cookie"] + response.text
        assert cookie.value not in response.text

        # httpx keeps the cookie, as a browser does
        assert (await running.client.get("/v1/policies")).status_code == 200
        seen = (await running.client.get("/v1/session")).json()
        assert seen == body  # also after the page was loaded again


async def test_over_https_the_cookie_is_secure(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["read"])
        transport = httpx.ASGITransport(app=running.app)
        async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
            response = await client.post("/v1/session", headers=bearer(secret))
            assert cookie_of(response)["secure"] is True
            assert (await client.get("/v1/session")).json()["key"] is not None


async def test_a_cookie_alone_changes_nothing(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["infer"])
        client, first = running.client, (await begin(running, secret)).json()["csrf_token"]
        assert code_of(await client.post("/v1/distilled", json=HI), 403) == "csrf_token_missing"
        for wrong in ("", "0" * 64, first[:-1], first.upper(), "\u00e9".encode().decode("latin-1")):
            headers = {b"x-csrf-token": wrong.encode("latin-1")}
            response = await client.post("/v1/distilled", json=HI, headers=headers)  # type: ignore[arg-type]
            assert code_of(response, 403) == "csrf_token_missing"
        assert code_of(await client.delete("/v1/session"), 403) == "csrf_token_missing"
        assert await running.gateway.store.completions.count() == 0
        good = await client.post("/v1/distilled", json=HI, headers={"x-csrf-token": first})
        assert good.status_code == 200
        # a key needs none, and goes before the cookie
        assert (await client.post("/v1/distilled", json=HI, headers=bearer(secret))).is_success
        assert code_of(await client.get("/v1/models", headers=bearer("no")), 401)
        # another session's token is of no use
        client.cookies.clear()
        await begin(running, secret)
        response = await client.post("/v1/distilled", json=HI, headers={"x-csrf-token": first})
        assert code_of(response, 403) == "csrf_token_missing"


async def test_a_session_may_what_its_key_may(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["read"])
        token = (await begin(running, secret)).json()["csrf_token"]
        response = await running.client.post(
            "/v1/distilled", json=HI, headers={"x-csrf-token": token}
        )
        assert code_of(response, 403) == "missing_scope"


async def test_a_session_that_is_ended_is_over_for_whoever_has_the_cookie(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        _, secret = await make_key(running, ["read"])
        started = await begin(running, secret)
        stolen = {"cookie": f"theme=dark; bond_session={cookie_of(started).value}"}
        headers = {"x-csrf-token": started.json()["csrf_token"]}
        ended = await running.client.delete("/v1/session", headers=headers)
        assert (ended.status_code, ended.content) == (204, b"")
        assert cookie_of(ended)["max-age"] == "0"
        running.client.cookies.clear()
        response = await running.client.get("/v1/policies", headers=stolen)
        assert code_of(response, 401) == "invalid_api_key"
        assert "session is over" in response.json()["error"]["message"]


async def test_a_session_ends_with_its_time_and_with_its_key(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(access={"session_s": 600})) as running:
        _, secret = await make_key(running, ["read"])
        value = cookie_of(await begin(running, secret)).value
        running.client.cookies.clear()
        headers = {"cookie": f"bond_session={value}"}
        assert (await running.client.get("/v1/policies", headers=headers)).status_code == 200
        keyring = running.gateway.gatekeeper.keyring
        keyring._clock = lambda: time.time() + 601
        assert code_of(await running.client.get("/v1/policies", headers=headers), 401)
        keyring._clock = time.time
    async with run(make_config()) as running:
        key, secret = await make_key(running, ["read"])
        await begin(running, secret)
        assert (await running.client.get("/v1/policies")).status_code == 200
        await running.gateway.store.access.revoke(key.id)
        await running.gateway.gatekeeper.keyring.refresh()
        assert code_of(await running.client.get("/v1/policies"), 401)


async def test_a_session_survives_a_restart_and_holds_on_every_gateway(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    config = make_config(store={"url": database_url})
    async with run(config) as running:
        _, secret = await make_key(running, ["read"])
        started = await begin(running, secret)
    async with run(config) as running:
        running.client.cookies.set("bond_session", cookie_of(started).value)
        seen = (await running.client.get("/v1/session")).json()
    assert seen == started.json()


async def test_forged_cookies_open_nothing(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        await make_key(running, ["read"])
        for value in ("", "x", "A" * 43, "A" * 5000, "%00", '"'):
            headers = {"cookie": f"bond_session={value}"}
            assert code_of(await running.client.get("/v1/policies", headers=headers), 401)
        none = await running.client.post("/v1/session")
        assert code_of(none, 401) == "invalid_api_key"


async def test_an_open_gateway_says_so(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        seen = (await running.client.get("/v1/session")).json()
        assert (seen["open"], seen["key"], seen["csrf_token"]) == (True, None, None)
        assert seen["scopes"] == ["admin", "infer", "read"]
        response = await running.client.post("/v1/session", headers=bearer("anything"))
        assert code_of(response, 400) == "no_keys"
        assert (await running.client.delete("/v1/session")).status_code == 204


@pytest.mark.parametrize("lost", ["cookie", "key"])
async def test_by_key_there_is_no_session_to_show(
    run: Run, make_config: MakeConfig, lost: str
) -> None:
    async with run(make_config()) as running:
        key, secret = await make_key(running, ["read"])
        if lost == "cookie":
            await begin(running, secret)  # the key still goes first
        seen = (await running.client.get("/v1/session", headers=bearer(secret))).json()
        assert (seen["key"], seen["expires_at"], seen["csrf_token"]) == (key.id, None, None)
        ended = await running.client.delete("/v1/session", headers=bearer(secret))
        assert ended.status_code == 204
