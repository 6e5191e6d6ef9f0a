"""HTTP to one vLLM server."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, NoReturn

import aiohttp
from yarl import URL

from bond_core.engines.vllm.wire import error_message, error_param
from bond_core.errors import (
    BondError,
    EngineUnavailableError,
    InvalidRequestError,
    QuotingError,
)
from bond_core.json_text import dump_json_bytes, load_json
from bond_core.trace_context import TRACE_HEADERS

KEPT_IDLE_S = 2.0
"""How long an idle connection is kept. vLLM closes its own after 5 s, so that a burst of requests
after a pause would find many that are closed, and count as many failures of the server."""
UNAUTHORISED = (401, 403)
NOT_FOUND = 404
_JSON = {"content-type": "application/json"}
NOT_NOW = (NOT_FOUND, 408, 409, 425, 429)
"""Answers after which the same request may succeed: a model that is not loaded yet, a queue."""


class AwayError(QuotingError):
    """The server did not answer: it could not be reached, broke off, hung or failed."""

    def __init__(
        self,
        message: str,
        *,
        reached: bool,
        timed_out: bool = False,
        status: int | None = None,
        loggable: str | None = None,
    ) -> None:
        super().__init__(message, loggable)
        self.reached = reached
        """Whether the request may have begun to run."""
        self.timed_out = timed_out
        """Whether it was given all of its time: to ask again would double the work."""
        self.status = status
        """What it answered, if it did: 500 and above."""


class RefusedError(QuotingError):
    """The server answered with a status that says that the request is at fault."""

    def __init__(self, status: int, message: str, param: str | None) -> None:
        super().__init__(message, f"status {status}")
        self.status = status
        self.param = param


class Connection:
    """Pooled requests to one base URL.

    Raises `RefusedError` for 4xx answers, `AwayError` for everything else that is not an answer. A
    call that is cancelled closes its connection, which makes vLLM abort what it was computing.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        timeout_s: float,
        connect_timeout_s: float,
        *,
        limit: int = 0,
    ) -> None:
        """`limit` is how many requests may be on their way at once; 0 is any number."""
        self.url = url
        self._limit = limit
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s)
        self._session = self._opened()
        self._unpooled = self._opened(force_close=True)
        self._addresses: dict[str, URL] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """The JSON of an answer, or its text if it is none."""
        return await self._read("GET", path, None, timeout_s)

    async def post(self, path: str, body: object, *, timeout_s: float | None = None) -> Any:
        """The JSON of the answer to a JSON body, or its text if it is none."""
        return await self._read("POST", path, body, timeout_s)

    async def events(self, path: str, body: object) -> AsyncGenerator[str]:
        """The data of each server-sent event, without the closing `[DONE]`."""
        with _Held(await self._sent("POST", path, body, None)) as response:
            try:
                async for line in _lines(response.content):
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        yield line.removeprefix("data: ")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise self._away(error, reached=True) from error

    def abort(self) -> None:
        """Let everything that is on its way fail at once; what comes after has new connections."""
        old = self._session, self._unpooled
        self._session, self._unpooled = self._opened(), self._opened(force_close=True)
        for session in old:
            closing = asyncio.create_task(session.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all connections; running requests fail."""
        await self._session.close()
        await self._unpooled.close()
        await asyncio.gather(*self._closing)

    def _opened(self, *, force_close: bool = False) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=self._limit, force_close=True)
            if force_close
            else aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=KEPT_IDLE_S),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _read(self, method: str, path: str, body: object, timeout_s: float | None) -> Any:
        with _Held(await self._sent(method, path, body, timeout_s)) as response:
            try:
                content = await response.read()
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise self._away(error, reached=True) from error
        return _parsed(content)

    async def _sent(
        self, method: str, path: str, body: object, timeout_s: float | None
    ) -> aiohttp.ClientResponse:
        """An answer with a good status, its body not read yet, for its caller to hold."""
        options: dict[str, Any] = {}
        headers: Mapping[str, str] = TRACE_HEADERS.get() or {}
        if body is not None:
            options["data"] = dump_json_bytes(body)
            headers = {**_JSON, **headers}
        if headers:
            options["headers"] = headers
        if timeout_s is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=timeout_s)
        response = await self._answered(method, path, options)
        if response.status >= 400:
            with _Held(response):
                await self._refuse(path, response)
        return response

    async def _answered(
        self, method: str, path: str, options: dict[str, Any]
    ) -> aiohttp.ClientResponse:
        """The answer; asked for once more on a new connection if the server ended the first without
        a word, as it does with one that was idle for too long."""
        session, disconnected = self._session, False
        while True:
            try:
                return await session.request(method, self._address(path), **options)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise self._away(error, reached=disconnected) from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if disconnected or self._session.closed:
                    raise self._away(error, reached=True) from error
                session, disconnected = self._unpooled, True
            except (aiohttp.ClientError, TimeoutError, RuntimeError, OSError) as error:
                raise self._away(error, reached=True) from error

    def _address(self, path: str) -> URL:
        """Read once per route: to read an address costs more than to look it up."""
        address = self._addresses.get(path)
        if address is None:
            address = self._addresses[path] = URL(self.url + path)
        return address

    async def _refuse(self, path: str, response: aiohttp.ClientResponse) -> NoReturn:
        try:
            body = _parsed(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            body = None
        message = error_message(body) or f"status {response.status} without a reason"
        if response.status >= 500:
            raise AwayError(
                f"{self.url}{path} failed: {message}",
                reached=True,
                status=response.status,
                loggable=f"{self.url}{path} failed with status {response.status}",
            )
        raise RefusedError(response.status, message, error_param(body))

    def _away(self, error: Exception, *, reached: bool) -> AwayError:
        if isinstance(error, TimeoutError) and reached:
            return AwayError(f"{self.url} did not answer in time", reached=True, timed_out=True)
        kind = type(error).__name__
        told = f"{self.url} cannot be reached: "
        # what cannot be parsed is quoted; what the system says of a socket is its own
        loggable = told + (str(error) or kind) if isinstance(error, OSError) else told + kind
        return AwayError(told + (str(error) or kind), reached=reached, loggable=loggable)


class _Held:
    """A response while it is read; one that is not read to its end is closed, not released: vLLM
    sees the end of the connection and aborts. A class, as a generator would cost each request
    several times as much."""

    __slots__ = ("_response",)

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def __enter__(self) -> aiohttp.ClientResponse:
        return self._response

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._response.close()
        self._response.release()


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[str]:
    """Lines of any length, which aiohttp's own are not: the tokens of a long prompt are one."""
    rest: list[bytes] = []
    async for piece in content.iter_any():
        *whole, last = piece.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line]).decode(errors="replace").rstrip("\r")
            rest.clear()
        rest.append(last)


def _parsed(content: bytes) -> Any:
    try:
        return load_json(content)
    except ValueError:
        return content.decode(errors="replace")


def explained_refusal(error: RefusedError) -> BondError:
    """The error that a refusal is for callers."""
    if error.status in UNAUTHORISED:
        refused = "vLLM refuses the key in engine.api_key"
        return EngineUnavailableError(f"{refused}: {error}", refused)
    if error.status in NOT_NOW:
        not_now = "vLLM cannot answer now"
        return EngineUnavailableError(f"{not_now}: {error}", f"{not_now}: status {error.status}")
    return InvalidRequestError(f"vLLM refuses the request: {error}", param=error.param)
