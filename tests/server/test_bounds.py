"""What one request may carry: size, depth, messages; and paths that stay where they belong."""

import asyncio
import contextlib
import gc
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.exceptions import RequestValidationError
from published_adapters import challenger, publish
from running_gateway import MODEL, MakeConfig, Run, until_state
from served_gateway import Served, serving

from bond_core.types import PolicyState
from bond_server.access.bounded_body import is_deeper

JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


def depth_of(value: Any) -> int:
    """The depth by its definition."""
    if isinstance(value, dict):
        return 1 + max((depth_of(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(item) for item in value), default=0)
    return 0


def random_value(draw: random.Random, depth: int) -> Any:
    texts = ['[{"', "]}", '\\"[', "\\", "[" * 50, '"', "é{🙂", "\u0000[", ""]
    kind = draw.choice(["list", "object", "text", "number"] if depth else ["text", "number"])
    if kind == "list":
        return [random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    if kind == "object":
        return {
            draw.choice(texts): random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))
        }
    return draw.choice(texts) if kind == "text" else draw.choice([1.5e-9, True, None, -3])


@pytest.mark.parametrize("ascii_only", [True, False])
def test_depth_is_measured_as_it_is_defined(ascii_only: bool) -> None:
    draw = random.Random(1)
    depths = set[int]()
    for _ in range(3000):
        value = random_value(draw, draw.randint(0, 9))
        body = json.dumps(value, ensure_ascii=ascii_only, indent=draw.choice([None, 1])).encode()
        depth = depth_of(value)
        depths.add(depth)
        for limit in range(max(0, depth - 2), depth + 3):
            assert is_deeper(body, limit) is (depth > limit), body
    assert depths >= set(range(9))


def test_the_depth_of_the_worst_bodies_is_found_in_reasonable_time() -> None:
    half = 1 << 21
    for body in (b"[" * 2 * half, b"[]" * half, b"[" * half + b"]" * half, b"[[]" * half,
                 b'"' * 2 * half, b'"\\' * half, b"[" * 32 + b"[]" * half + b"]" * 32):  # fmt: skip
        started = time.process_time()
        is_deeper(body, 32)
        assert time.process_time() - started < 2.0  # measured 0.003 to 0.43 s for 4 MiB


async def test_bounds_are_settings_and_errors_say_them(run: Run, make_config: MakeConfig) -> None:
    access = {"max_body_bytes": 2000, "max_messages": 3, "max_json_depth": 8}
    async with run(make_config(access=access)) as running:
        client = running.client
        turn = {"role": "user", "content": "hi"}
        fits = await client.post("/v1/distilled", json={"messages": [turn] * 3})
        assert fits.status_code == 200
        many = error_of(await client.post("/v1/compare", json={"messages": [turn] * 4}), 400)
        assert (many["param"], many["code"]) == ("messages", "invalid_value")
        assert "4 entries; at most 3" in many["message"]

        text = json.dumps({"messages": [turn]})
        padded = text + " " * (2000 - len(text))
        exact = await client.post("/v1/distilled", content=padded, headers=JSON)
        assert exact.status_code == 200
        large = await client.post("/v1/distilled", content=padded + " ", headers=JSON)
        assert "larger than 2000 bytes (access.max_body_bytes)" in error_of(large, 413)["message"]

        nested: Any = "x"
        for _ in range(7):
            nested = [nested]
        shallow = error_of(await client.post("/v1/distilled", json={"metadata": nested}), 400)
        assert shallow["code"] == "invalid_value"  # 8 levels are read, and found wrong otherwise
        deep = error_of(await client.post("/v1/distilled", json={"metadata": [nested]}), 400)
        assert deep["code"] == "body_too_deep"
        assert "deeper than 8 levels (access.max_json_depth)" in deep["message"]
        harmless = {"messages": [{"role": "user", "content": "[{" * 300}]}
        assert (await client.post("/v1/distilled", json=harmless)).status_code == 200
        assert await running.gateway.store.completions.count() == 3


async def test_depth_is_seen_across_pieces_of_a_body(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        body = b'{"messages": ' + b"[" * 40 + b'"]"' + b"]" * 40 + b"}"

        async def pieces() -> Any:
            for start in range(0, len(body), 7):
                yield body[start : start + 7]

        response = await running.client.post("/v1/distilled", content=pieces(), headers=JSON)
        assert error_of(response, 400)["code"] == "body_too_deep"


PATHS = [
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "v0001/../../x", "/etc/passwd", "v0001%00",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
async def test_names_of_requests_are_no_paths(
    run: Run, make_config: MakeConfig, tmp_path: Path, name: str
) -> None:
    async with run(make_config()) as running:
        for route in ("/v1/models/", "/v1/policies/"):
            response = await running.client.get(route + name)
            assert response.status_code == 404
        for model in (f"{MODEL}:distilled@{name}", f"{MODEL}/{name}", name):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
            response = await running.client.post("/v1/chat/completions", json=body)
            assert error_of(response, 404)["code"] == "model_not_found"


@pytest.mark.parametrize("linked", ["directory", "weights"])
async def test_a_version_that_links_elsewhere_is_rejected(
    run: Run, make_config: MakeConfig, tmp_path: Path, linked: str
) -> None:
    config = make_config(server={"policy_poll_s": 60})
    async with run(config) as running:
        version = "v0001"
        folder = await publish(config, version)
        await running.gateway.store.policies.insert(challenger(version, folder))
        outside = tmp_path / "outside"
        inside = folder if linked == "directory" else folder / "adapter_model.safetensors"
        shutil.move(inside, outside)
        os.symlink(outside, inside)
        await running.gateway.controller.tick()
        reason = await until_state(running, version, PolicyState.REJECTED)
        assert "leads out of" in reason
        assert str(inside) in reason
        assert running.gateway.policies.active == "v0000"


async def test_bodies_that_never_end_give_their_places_back(make_config: MakeConfig) -> None:
    config = make_config(access={"body_timeout_s": 0.3}, admission={"max_requests": 3})
    head = (
        b"POST /v1/distilled HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 500\r\n\r\n{"
    )
    async with serving(config) as served:
        slow = [await asyncio.open_connection(served.host, served.port) for _ in range(3)]
        for _, writer in slow:
            writer.write(head)
        told = [await asyncio.wait_for(reader.read(), 20) for reader, _ in slow]
        after = await served.client.get("/v1/models")
        for _, writer in slow:
            writer.close()
    for answer in told:
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert b'"body_timeout"' in answer
        assert b"access.body_timeout_s" in answer
    assert after.status_code == 200


async def test_a_version_that_no_database_can_hold_is_unknown(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    async with run(make_config(store={"url": database_url})) as running:
        odd = await running.client.get("/v1/policies/v%00")
    assert error_of(odd, 404)["code"] == "model_not_found"


HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"


async def told_to(served: Served, *pieces: bytes) -> bytes:
    """What somebody who sends this, and then nothing, is told until the connection ends."""
    reader, writer = await asyncio.open_connection(served.host, served.port)
    told = b""
    with contextlib.suppress(ConnectionError):  # hung up on while it still sends
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(ConnectionError):
        while more := await asyncio.wait_for(reader.read(1 << 16), 20):
            told += more
    writer.close()
    return told


async def test_a_head_without_end_is_refused_before_it_fills_the_memory(
    make_config: MakeConfig,
) -> None:
    mebibyte = b"a" * (1 << 20)
    async with serving(make_config()) as served:
        fits = await served.client.get("/healthz", headers={"x-long": "a" * 60_000})
        refused = await told_to(served, HEALTH + b"x-long: " + b"a" * 66_000)
        for start in (HEALTH + b"x-long: ", b"GET /"):
            process = psutil.Process()
            before = process.memory_info().rss
            await told_to(served, start, *[mebibyte] * 64)
            assert process.memory_info().rss - before < 32 * (1 << 20)
        many = await told_to(served, HEALTH, *[b"x: y\r\n" * 20_000] * 8)
        after = await served.client.get("/healthz")
    assert (fits.status_code, after.status_code) == (200, 200)
    assert refused.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    head, _, body = refused.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body) == {
        "error": {
            "message": "the request's line and headers are larger than 65536 bytes",
            "type": "invalid_request_error",
            "param": None,
            "code": "head_too_large",
        }
    }
    assert many == b"" or many.startswith(b"HTTP/1.1 431 ")


async def test_who_asks_nothing_keeps_no_connection(make_config: MakeConfig) -> None:
    secured = make_config(access={"body_timeout_s": 0.3})
    async with serving(secured) as served:
        silent, half, second = await asyncio.gather(
            told_to(served),
            told_to(served, HEALTH + b"x-slow: "),
            told_to(served, HEALTH + b"\r\n" + HEALTH),
        )
        assert not served.connections
    assert (silent, half) == (b"", b"")
    assert second.count(b"HTTP/1.1 200 OK") == 1


async def test_a_body_that_goes_on_after_its_answer_ends(make_config: MakeConfig) -> None:
    head = (
        b"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    async with serving(make_config(access={"max_body_bytes": 2048})) as served:
        fed, ended, began = 0, False, time.monotonic()
        reader, writer = await asyncio.open_connection(served.host, served.port)
        writer.write(head)
        assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
        while not ended and time.monotonic() - began < 20:
            writer.write(chunk)
            try:
                await writer.drain()
            except ConnectionError:
                ended = True
            fed += len(chunk)
            await asyncio.sleep(0)
        writer.close()
        assert ended
        assert not served.connections
    assert fed > 65_536


async def test_an_answer_may_take_longer_than_a_head(make_config: MakeConfig) -> None:
    slow = make_config(engine={"type": "fake", "delay_s": 1.0}, access={"body_timeout_s": 0.2})
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
    post = b"POST /v1/distilled HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    post += b"content-length: %d\r\n\r\n" % len(body) + body
    async with serving(slow) as served:
        told = await told_to(served, post + HEALTH)  # and begins another request meanwhile
    assert told.startswith(b"HTTP/1.1 200 OK")
    assert b'"chat.completion"' in told


async def test_a_refused_body_is_let_go_at_once(make_config: MakeConfig, run: Run) -> None:
    """Not when the collector looks next, which may be a hundred bodies later."""
    async with run(make_config()) as running:
        client, path = running.client, "/v1/chat/completions"
        body = b'{"messages": [' + b" " * 100_000
        await client.post(path, content=body, headers=JSON)  # what is made once
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            error_of(await client.post(path, content=body, headers=JSON), 400)
            gc.collect()
            garbage = list(gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert [kept for kept in garbage if isinstance(kept, RequestValidationError)] == []
