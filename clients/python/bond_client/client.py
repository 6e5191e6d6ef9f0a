"""The clients: they send what `requests` builds, and do nothing else."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx

from bond_client import requests
from bond_client.answers import (
    ChatCompletion,
    Comparison,
    parse_chat_completion,
    parse_comparison,
)
from bond_client.errors import BondConnectionError, BondTimeoutError
from bond_client.requests import Call, Messages
from bond_client.state import (
    Health,
    Model,
    Policies,
    Training,
    parse_models,
    parse_policies,
    parse_training,
)

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_S = 120.0


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}


def _unreachable(error: httpx.TransportError, url: str, timeout_s: float) -> BondConnectionError:
    if isinstance(error, httpx.TimeoutException):
        return BondTimeoutError(url, timeout_s)
    return BondConnectionError(url, str(error) or type(error).__name__)


class Client:
    """Blocking client. Every method raises the errors of `bond_client.errors`.

    Sampling parameters are passed by their names in the API: `temperature`, `max_tokens`, `seed`,
    `best_of`, `n`, `stop`, `store` and so on. `transport` replaces the network, for tests.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=self._url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(
        self, messages: Messages, *, model: str, return_candidates: bool = False, **params: object
    ) -> ChatCompletion:
        """Answer a conversation; the model id decides the arm, the plain name leaves it open."""
        call = requests.chat(messages, model, return_candidates, params)
        return parse_chat_completion(self._json(call))

    def best_of_n(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        return_candidates: bool = False,
        **params: object,
    ) -> ChatCompletion:
        """Answer with the best of N candidates of the reference."""
        call = requests.best_of_n(messages, model, return_candidates, params)
        return parse_chat_completion(self._json(call))

    def distilled(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        return_candidates: bool = False,
        **params: object,
    ) -> ChatCompletion:
        """Answer with one sample of the distilled policy."""
        call = requests.distilled(messages, model, return_candidates, params)
        return parse_chat_completion(self._json(call))

    def compare(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        arms: Sequence[str] | None = None,
        **params: object,
    ) -> Comparison:
        """Answer a conversation by several arms side by side."""
        return parse_comparison(self._json(requests.compare(messages, model, arms, params)))

    def models(self) -> tuple[Model, ...]:
        """All model ids that may be asked."""
        return parse_models(self._json(requests.MODELS))

    def policies(self) -> Policies:
        """All policy versions, and which one is live."""
        return parse_policies(self._json(requests.POLICIES))

    def training(self) -> Training:
        """What the trainer does, and what the arms give."""
        return parse_training(self._json(requests.TRAINING))

    def health(self) -> Health:
        """Whether the gateway can answer; a gateway that cannot is not an error here."""
        return requests.parse_health(*self._send(requests.READY))

    def _json(self, call: Call) -> object:
        return requests.decode(*self._send(call))

    def _send(self, call: Call) -> tuple[int, bytes]:
        try:
            response = self._http.request(call.method, call.path, json=_body(call))
        except httpx.TransportError as error:
            raise _unreachable(error, self._url, self._timeout_s) from error
        return response.status_code, response.content


class AsyncClient:
    """The same for asyncio; see `Client`."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def chat(
        self, messages: Messages, *, model: str, return_candidates: bool = False, **params: object
    ) -> ChatCompletion:
        """Answer a conversation; the model id decides the arm, the plain name leaves it open."""
        call = requests.chat(messages, model, return_candidates, params)
        return parse_chat_completion(await self._json(call))

    async def best_of_n(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        return_candidates: bool = False,
        **params: object,
    ) -> ChatCompletion:
        """Answer with the best of N candidates of the reference."""
        call = requests.best_of_n(messages, model, return_candidates, params)
        return parse_chat_completion(await self._json(call))

    async def distilled(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        return_candidates: bool = False,
        **params: object,
    ) -> ChatCompletion:
        """Answer with one sample of the distilled policy."""
        call = requests.distilled(messages, model, return_candidates, params)
        return parse_chat_completion(await self._json(call))

    async def compare(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        arms: Sequence[str] | None = None,
        **params: object,
    ) -> Comparison:
        """Answer a conversation by several arms side by side."""
        return parse_comparison(await self._json(requests.compare(messages, model, arms, params)))

    async def models(self) -> tuple[Model, ...]:
        """All model ids that may be asked."""
        return parse_models(await self._json(requests.MODELS))

    async def policies(self) -> Policies:
        """All policy versions, and which one is live."""
        return parse_policies(await self._json(requests.POLICIES))

    async def training(self) -> Training:
        """What the trainer does, and what the arms give."""
        return parse_training(await self._json(requests.TRAINING))

    async def health(self) -> Health:
        """Whether the gateway can answer; a gateway that cannot is not an error here."""
        return requests.parse_health(*await self._send(requests.READY))

    async def _json(self, call: Call) -> object:
        return requests.decode(*await self._send(call))

    async def _send(self, call: Call) -> tuple[int, bytes]:
        try:
            response = await self._http.request(call.method, call.path, json=_body(call))
        except httpx.TransportError as error:
            raise _unreachable(error, self._url, self._timeout_s) from error
        return response.status_code, response.content


def _body(call: Call) -> dict[str, object] | None:
    return None if call.body is None else dict(call.body)
