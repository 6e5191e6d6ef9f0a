"""A client that closes the connection while it waits for its answer."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

from running_gateway import Running

HI = [{"role": "user", "content": "hi"}]


async def disconnecting_post(
    running: Running,
    path: str,
    after_s: float | Awaitable[object],
    header: tuple[bytes, bytes] = (b"x-a", b"b"),
    asked: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Speak ASGI as a server does whose client closes the connection after a while, or after
    something."""
    body = json.dumps(asked or {"messages": HI}).encode()
    sent: list[dict[str, Any]] = []
    inbox = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await (asyncio.sleep(after_s) if isinstance(after_s, float) else after_s)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), header],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await running.app(scope, receive, send)  # type: ignore[arg-type]
    return sent
