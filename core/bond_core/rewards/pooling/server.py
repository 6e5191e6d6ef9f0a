"""HTTP to a pooling server: one pool of connections, bounded times, one safe retry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from bond_core.config import PoolingScorerConfig
from bond_core.errors import ModelLoadError, ScorerUnavailableError, ScoringError
from bond_core.rewards.pooling.answers import Answer, fields_of, list_of, read_scores, shown
from bond_core.trace_context import TRACE_HEADERS

_KEEP_S = 3.0
"""An idle connection is dropped after this; vLLM ends it after 5 s, perhaps as we write to it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What `/v1/models` says of the reward model."""

    id: str
    root: str
    """The folder or repository that it was loaded from, as the server knows it."""
    max_tokens: int | None


class _NotAnsweredError(Exception):
    """The connection failed before an answer began."""


class PoolingServer:
    """One server and the event loop's connections to it. To be made inside that loop."""

    def __init__(self, config: PoolingScorerConfig) -> None:
        self.url = config.url
        self._timeout_s = config.timeout_s
        self.answers = True
        """Whether it answered when it was last asked, and not by a failure of its own."""
        headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        self._session = aiohttp.ClientSession(
            # The scorer bounds how much is asked at once; waiting for a place here would count
            # towards the time-out.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_S),
            timeout=aiohttp.ClientTimeout(total=config.timeout_s),
            headers=headers,
        )

    async def model(self, name: str) -> ServedModel:
        """The served model of that name, or the only one. Raises `ModelLoadError`."""
        try:
            answer = await self._ask("GET", "/v1/models")
            served = _read_models(answer) if answer.is_ok else None
        except ScoringError as error:
            raise ModelLoadError(
                f"the reward server cannot be used: {self._named(error)}; start it as "
                "docs/own-model.md says, or correct url in the scorer's section"
            ) from error
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise ModelLoadError(str(self._named(answer.refusal())))
        if not served:
            raise ModelLoadError(
                f"{self.url} lists no models at /v1/models ({answer.status}: {answer.said()}): "
                "give the base URL of a vLLM server"
            )
        ids = ", ".join(model.id for model in served)
        if not name and len(served) > 1:
            raise ModelLoadError(
                f"{self.url} serves several models: set model_name in the scorer's section to one "
                f"of {ids}"
            )
        for model in served:
            if name in ("", model.id):
                return model
        raise ModelLoadError(
            f"{self.url} serves no model {name!r}: set model_name in the scorer's section to one "
            f"of {ids}"
        )

    async def scores(self, body: Mapping[str, Any], count: int) -> list[float]:
        """One number for each conversation in the body, in order, perhaps not finite.

        Raises `ScoringError` for what the server says of this request, and
        `ScorerUnavailableError` for everything else that goes wrong.
        """
        try:
            answer = await self._ask("POST", "/classify", body)
            if not answer.is_ok:
                raise answer.refusal()
            return read_scores(answer.parsed(), count)
        except ScoringError as error:
            raise self._named(error) from error.__cause__

    async def tokens(self, model: str, messages: Sequence[Mapping[str, str]]) -> list[object]:
        """How the server itself renders a whole conversation. Raises `ScoringError`."""
        body = {"model": model, "messages": messages, "add_generation_prompt": False}
        try:
            answer = await self._ask("POST", "/tokenize", body)
            if not answer.is_ok:
                raise ScorerUnavailableError(
                    f"does not say how it renders a conversation ({answer.status} at /tokenize: "
                    f"{answer.said()}): let that route through, or leave path out"
                )
            parsed = answer.parsed()
        except ScoringError as error:
            raise self._named(error) from error.__cause__
        tokens = list_of(fields_of(parsed).get("tokens"))
        if tokens is None:
            raise ScorerUnavailableError(f"{self.url}/tokenize answered {shown(parsed)}")
        return tokens

    async def close(self) -> None:
        """End all connections; requests under way fail."""
        await self._session.close()

    def _named(self, error: ScoringError) -> ScoringError:
        return type(error)(f"the reward server at {self.url} {error}")

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """One answer of any status. Raises `ScorerUnavailableError` if there is none.

        Scoring changes nothing at the server, so a request whose connection failed before an
        answer began is sent once more: the connection may have been an old one.
        """
        try:
            answer = await self._answered(method, path, body)
        except ScorerUnavailableError:
            self.answers = False
            raise
        self.answers = answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return answer

    async def _answered(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        try:
            return await self._once(method, path, body)
        except _NotAnsweredError:
            pass
        try:
            return await self._once(method, path, body)
        except _NotAnsweredError as error:
            raise ScorerUnavailableError(
                f"cannot be reached ({error}): see that it runs, and look at its log"
            ) from error.__cause__

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        if self._session.closed:
            raise ScorerUnavailableError("is not asked any more: the scorer was closed")
        try:
            response = await self._session.request(
                method,
                f"{self.url}{path}",
                json=body,
                allow_redirects=False,
                headers=TRACE_HEADERS.get(),
            )
        except TimeoutError as error:
            raise self._too_slow() from error
        except aiohttp.ClientConnectionError as error:
            raise _NotAnsweredError(str(error) or type(error).__name__) from error
        except aiohttp.ClientError as error:
            raise ScorerUnavailableError(
                f"does not speak HTTP as it should ({shown(error)}): is it a vLLM server?"
            ) from error
        async with response:
            try:
                return Answer(response.status, await response.read())
            except TimeoutError as error:
                raise self._too_slow() from error
            except (aiohttp.ClientError, OSError) as error:
                raise ScorerUnavailableError(
                    f"broke off in the middle of an answer ({shown(error)}): look at its log"
                ) from error

    def _too_slow(self) -> ScorerUnavailableError:
        return ScorerUnavailableError(
            f"took longer than {self._timeout_s:g} s: see that it does not hang, lower batch_size "
            "or raise timeout_s in the scorer's section"
        )


def _read_models(answer: Answer) -> list[ServedModel]:
    found: list[ServedModel] = []
    for item in list_of(fields_of(answer.parsed()).get("data")) or []:
        fields = fields_of(item)
        name, longest = fields.get("id"), fields.get("max_model_len")
        if isinstance(name, str) and not fields.get("parent"):  # an adapter is no model here
            known = longest if isinstance(longest, int) and longest > 0 else None
            found.append(ServedModel(name, str(fields.get("root") or ""), known))
    return found
