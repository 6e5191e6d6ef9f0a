"""The proxy as it is shipped, without gateways: what it says itself, and whom it bounds."""

import contextlib
import json
import secrets
import selectors
import socket
import time
from collections.abc import Iterator

import pytest
from docker_engine import FILES, docker, free_port, inspect, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

PLACES, PLACES_OF_ONE = 768, 256
BODY_TIMEOUT_S, HEADER_TIMEOUT_S = 10, 15
LONG = "x" * 9000
ROOM = 16 * 2**20
"""Of bodies on their way, in memory; less than in the stack, so that it is soon full."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[tuple[str, int]]:
    """Name and published port of a proxy whose gateways refuse connections."""
    name, published = f"bondserve-test-{secrets.token_hex(4)}", free_port()
    docker("run", "--detach", "--rm", "--name", f"{name}-away", "nginx:1.22", "sleep", "600")
    away = inspect(f"{name}-away")["NetworkSettings"]["IPAddress"]
    docker(
        "run", "--detach", "--name", name, "--ulimit", "nofile=1024:8192",
        "--user", "101:101", "--read-only",
        "--tmpfs", f"/tmp:mode=1777,size={ROOM}", "--cap-drop", "ALL",
        "--add-host", f"gateway-a:{away}", "--add-host", f"gateway-b:{away}",
        "--volume", f"{FILES / 'nginx/nginx.conf'}:/etc/nginx/nginx.conf:ro",
        "--publish", f"127.0.0.1:{published}:8080", "nginx:1.22",
    )  # fmt: skip
    try:
        until("the proxy answers", lambda: answers(published), 30)
        yield name, published
    finally:
        docker("rm", "--force", name, f"{name}-away", check=False)


@pytest.fixture
def port(proxy: tuple[str, int]) -> int:
    """The published port."""
    return proxy[1]


def answers(port: int) -> bool:
    try:
        return said(port, b"GET /proxy-health HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200
    except (OSError, ValueError, IndexError):
        return False


def said(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return answer(connection)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes next."""
    got = b""
    while b"\r\n\r\n" not in got:
        if not (more := connection.recv(65536)):
            raise ConnectionError(f"closed after {got!r}")
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, body


def request(path: str = "/v1/distilled", method: str = "GET", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("asked", "status", "type", "code"),
    [
        (b"NOT HTTP\r\n\r\n", 400, "invalid_request_error", "bad_request"),
        (request("/", "GET", f"X-Long: {LONG}"), 400, "invalid_request_error", "bad_request"),
        (request("/proxy-error"), 404, "invalid_request_error", "route_not_found"),
        (request("/", "TRACE"), 405, "invalid_request_error", "method_not_allowed"),
        (
            request("/v1/distilled", "POST", "Content-Length: 5000000"),
            413,
            "invalid_request_error",
            "body_too_large",
        ),
        (request(f"/{LONG}"), 414, "invalid_request_error", "uri_too_long"),
        (request("/", "POST", "Transfer-Encoding: new"), 501, "server_error", "proxy_error"),
        (request(), 502, "server_error", "gateway_unreachable"),
        (request("/grafana/"), 502, "server_error", "grafana_unreachable"),
    ],
    ids=["no http", "header", "absent", "method", "body", "address", "coding", "away", "grafana"],
)
def test_what_the_proxy_says_itself_has_the_shape_of_the_api(
    port: int, asked: bytes, status: int, type: str, code: str
) -> None:
    found, headers, body = said(port, asked)
    error = json.loads(body)["error"]
    assert (found, error["type"], error["code"], error["param"]) == (status, type, code, None)
    assert error["message"]
    assert headers["content-type"] == "application/json"
    assert "x-should-retry" not in headers
    assert headers.get("retry-after") == ("1" if status in (502, 503, 504) else None)


def test_each_worker_has_descriptors_for_its_connections(proxy: tuple[str, int]) -> None:
    script = "for p in $(cat /proc/1/task/1/children); do grep 'open files' /proc/$p/limits; done"
    workers = docker("exec", proxy[0], "sh", "-c", script).stdout.splitlines()
    assert workers
    assert {tuple(line.split()[3:5]) for line in workers} == {("4096", "4096")}


def slow_bodies(
    port: int, stack: contextlib.ExitStack, count: int, *headers: str
) -> list[socket.socket]:
    """Requests of which one byte of the body came, and no more does."""
    began = request("/v1/distilled", "POST", "Content-Length: 9", *headers) + b"{"
    opened: list[socket.socket] = []
    for _ in range(count):
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        stack.enter_context(opened[-1])
        opened[-1].sendall(began)
    return opened


def the_one_refused(connections: list[socket.socket]) -> tuple[int, dict[str, str], bytes]:
    """The answer to the first request that got one: for it there was no place; the others wait."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        (key, _), *_ = selector.select(timeout=BODY_TIMEOUT_S)
    refused = connections.pop(connections.index(key.fileobj))  # pyright: ignore[reportArgumentType]
    return answer(refused)


def test_slow_bodies_of_one_address_leave_places_for_others(port: int) -> None:
    from_one = "X-Forwarded-For: 203.0.113.7"
    from_another = "X-Forwarded-For: 203.0.113.8"

    def status(*headers: str) -> int:
        return said(port, request("/v1/models", "GET", *headers))[0]

    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        slow = slow_bodies(port, stack, PLACES_OF_ONE + 1, from_one)
        refused, headers, body = the_one_refused(slow)
        assert (refused, headers["retry-after"]) == (503, "1")
        assert headers["x-should-retry"] == "true"  # nothing was drawn for it
        assert json.loads(body)["error"]["code"] == "too_many_requests"
        assert status(from_one) == 503
        assert status(from_another) == 502  # let through to the gateways, which are away
        assert status() == 502  # a private address may stand for many
        rest = slow_bodies(port, stack, PLACES - PLACES_OF_ONE + 1)
        assert the_one_refused(rest)[0] == 503
        assert status(from_another) == 503
        header = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        header.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        assert time.monotonic() - began < BODY_TIMEOUT_S, "too slow to tell"
        for connection in slow + rest:
            assert connection.recv(1) == b""  # hung up on
        assert time.monotonic() - began < 2 * BODY_TIMEOUT_S
        assert status(from_one) == 502
        assert header.recv(1) == b""
        assert time.monotonic() - began < BODY_TIMEOUT_S + 2 * HEADER_TIMEOUT_S


def test_a_body_that_finds_no_room_gets_an_answer_and_the_next_one_too(port: int) -> None:
    begun = request("/v1/distilled", "POST", "Content-Length: 4000000") + b"x" * 3_900_000
    with contextlib.ExitStack() as stack:
        opened: list[socket.socket] = []
        for _ in range(ROOM // 3_900_000 + 1):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=30))
            stack.enter_context(opened[-1])
            opened[-1].sendall(begun)
        status, headers, body = the_one_refused(opened)
        assert (status, headers["content-type"]) == (500, "application/json")
        assert json.loads(body)["error"]["code"] == "proxy_error"
        assert said(port, request("/proxy-health"))[0] == 200
    whole = request("/v1/distilled", "POST", "Content-Length: 3900000") + b"x" * 3_900_000
    until("there is room again", lambda: said(port, whole)[0] == 502, 30)
