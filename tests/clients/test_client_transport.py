"""Both clients over a transport of ours: they send what the core builds, and nothing else."""

import json

import httpx
import pytest

from bond_client import (
    AsyncClient,
    BondConnectionError,
    BondProtocolError,
    BondTimeoutError,
    Client,
)

MODELS = {"data": [{"id": "demo", "root": "demo", "parent": None}]}


class Recorder:
    """Answers every request with the list of models, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(200, json=MODELS)


def _refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


def _hang(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("too slow", request=request)


def test_the_key_and_the_path_are_sent() -> None:
    recorder = Recorder()
    with Client("http://h:1/", api_key="k", transport=httpx.MockTransport(recorder)) as client:
        assert client.models()[0].id == "demo"
    [request] = recorder.requests
    assert str(request.url) == "http://h:1/v1/models"
    assert request.headers["authorization"] == "Bearer k"
    assert request.content == b""


async def test_the_async_client_sends_the_same() -> None:
    recorder = Recorder()
    transport = httpx.MockTransport(recorder)
    async with AsyncClient("http://h:1", transport=transport) as client:
        assert (await client.models())[0].root == "demo"
        with pytest.raises(BondProtocolError, match=r"answer\.usage"):
            await client.distilled("q", seed=3)
    body = json.loads(recorder.requests[1].content)
    assert recorder.requests[1].url.path == "/v1/distilled"
    assert body == {"messages": [{"role": "user", "content": "q"}], "seed": 3}
    assert "authorization" not in recorder.requests[0].headers


def test_no_server_is_an_error_that_says_what_to_do() -> None:
    with (
        Client("http://h:1", transport=httpx.MockTransport(_refuse)) as client,
        pytest.raises(BondConnectionError) as caught,
    ):
        client.health()
    assert str(caught.value) == (
        "no answer from http://h:1 (connection refused): check the URL, and that the server runs "
        "there (start it with `bond up`)"
    )
    assert not isinstance(caught.value, BondTimeoutError)


async def test_a_slow_server_is_a_timeout() -> None:
    transport = httpx.MockTransport(_hang)
    async with AsyncClient("http://h:1", timeout_s=2.5, transport=transport) as client:
        with pytest.raises(BondTimeoutError, match=r"timed out after 2\.5 s") as caught:
            await client.policies()
    assert caught.value.timeout_s == 2.5
