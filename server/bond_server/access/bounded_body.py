"""The body of a request as it is read: bounded in size, and in the depth of its JSON.

Depth is bounded before anything parses the body, because what is nested thousands deep ends
parsers, and whatever walks their result, in recursion errors.
"""

import asyncio
import json
import re
from collections.abc import Iterable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from bond_core.config import AccessConfig
from bond_core.errors import InvalidRequestError

CLIENT_CLOSED = 499
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
"""A string, or what follows a quote that nothing closes: so it always matches, in linear time."""
_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class TooDeepError(HTTPException):
    """The body's JSON is nested deeper than is allowed."""


class NotUtf8Error(HTTPException):
    """The body is JSON in another encoding, which a lenient parser would take."""


class BoundedBody:
    """Passes the body on while it stays within bounds; beyond, reading it is an HTTP error."""

    def __init__(
        self, receive: Receive, headers: Iterable[tuple[bytes, bytes]], bounds: AccessConfig
    ) -> None:
        self._receive = receive
        self._headers = headers
        self._declared = _declared_length(headers)
        self._bounds = bounds
        self._read = 0
        self._openers = 0
        self._has_zeros = False
        self._chunks: list[bytes] = []
        self._is_whole = False
        self._due: float | None = None

    async def receive(self) -> Message:
        """The next event of the request. Raises `HTTPException` over a bound, and where the client
        goes away before the end of the body."""
        if self._declared > self._bounds.max_body_bytes:
            raise self._too_large()
        if self._is_whole:
            return await self._receive()
        message = await self._in_time()
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body", False)
            self._take(message.get("body", b""), more=not self._is_whole)
        elif self._is_sent:
            # of anything else that goes wrong while it reads a body the framework makes a 400
            raise HTTPException(CLIENT_CLOSED, "the client closed the connection within its body")
        return message

    @property
    def _is_sent(self) -> bool:
        """Whether there is a body at all."""
        return self._declared > 0 or any(name == b"transfer-encoding" for name, _ in self._headers)

    async def _in_time(self) -> Message:
        """Else whoever begins many bodies and ends none would take every place of the process."""
        if self._due is None:
            self._due = asyncio.get_running_loop().time() + self._bounds.body_timeout_s
        try:
            async with asyncio.timeout_at(self._due):
                return await self._receive()
        except TimeoutError:
            raise HTTPException(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come in within {self._bounds.body_timeout_s:g} s "
                "(access.body_timeout_s)",
                {"connection": "close"},
            ) from None

    def _take(self, chunk: bytes, *, more: bool) -> None:
        self._read += len(chunk)
        if self._read > self._bounds.max_body_bytes:
            raise self._too_large()
        self._has_zeros = self._has_zeros or b"\0" in chunk
        self._openers += chunk.count(b"[") + chunk.count(b"{")
        self._chunks.append(chunk)
        if more:
            return
        chunks, self._chunks = self._chunks, []
        # UTF-16 and UTF-32 have a zero byte in every bracket
        if self._has_zeros and not json.detect_encoding(b"".join(chunks)).startswith("utf-8"):
            raise NotUtf8Error(
                HTTPStatus.BAD_REQUEST,
                "the body is not UTF-8, the one encoding that JSON is sent in",
            )
        limit = self._bounds.max_json_depth
        # fewer openers than that cannot nest so deep: nearly every body ends here
        if self._openers > limit and is_deeper(b"".join(chunks), limit):
            raise TooDeepError(
                HTTPStatus.BAD_REQUEST,
                f"the body is nested deeper than {limit} levels (access.max_json_depth)",
            )

    def _too_large(self) -> HTTPException:
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than {self._bounds.max_body_bytes} bytes (access.max_body_bytes)",
            # the rest of the body is not read, so the connection cannot be used again
            {"connection": "close"},
        )


def refuse_too_many(num_messages: int, bounds: AccessConfig, param: str = "messages") -> None:
    """Raise `InvalidRequestError` for a conversation of more messages than are allowed, or for as
    many prompts."""
    if num_messages > bounds.max_messages:
        raise InvalidRequestError(
            f"{param} has {num_messages} entries; at most {bounds.max_messages} are taken "
            "(access.max_messages)",
            param=param,
        )


def is_deeper(body: bytes, limit: int) -> bool:
    """Whether JSON is nested deeper than a limit; True as well for brackets that do not match.

    Without its strings and all else the text is brackets alone. Each pass takes away the innermost
    pairs, and with them one level: what is left after as many passes as the limit was deeper.
    """
    brackets = _STRING.sub(b"", body).translate(_TO_BRACKETS, _NOT_BRACKETS)
    if b"[" * (limit + 1) in brackets:
        return True
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return b"[" in brackets


def _declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    value = next((v for name, v in headers if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0
