"""One vLLM server: what it is, whether it gets requests, and what it holds."""

import logging
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from bond_core.engines.vllm import wire
from bond_core.engines.vllm.connection import NOT_FOUND, AwayError, Connection, RefusedError
from bond_core.errors import EngineUnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of its base model."""

    name: str
    root: str
    max_model_len: int
    vllm_version: str


class Replica:
    """A server with its connection, load and circuit breaker.

    It is `ready` while it answers its looks, holds every adapter that it should, and fewer than
    `breaker_failures` requests in a row have failed. When it is excluded, what runs on it fails at
    once, instead of each request waiting for its own time-out.
    """

    def __init__(self, connection: Connection, breaker_failures: int) -> None:
        self.connection = connection
        self.ready = False
        self.rows = 0
        """Completions in progress, of this process."""
        self.adapters: set[str] = set()
        """Names that it was seen to hold."""
        self.why_not_ready: str = "it has not answered yet"
        self._breaker_failures = breaker_failures
        self._failures = 0

    @property
    def url(self) -> str:
        """Its base URL, by which it is named."""
        return self.connection.url

    def admit(self) -> None:
        """Let it have requests."""
        if not self.ready:
            logger.info("vLLM at %s is ready", self.url)
        self.ready, self.why_not_ready, self._failures = True, "", 0

    def exclude(self, why: str, *, said: str = "", abort: bool = True) -> None:
        """Let it have none; what runs on it fails now, or may end. The log has what it `said`, if
        that may be quoted."""
        if self.ready or why != self.why_not_ready:
            logger.warning("vLLM at %s gets no requests: %s", self.url, said or why)
        self.ready, self.why_not_ready = False, why
        if abort:
            self.connection.abort()

    async def running(self, work: Awaitable[T]) -> T:
        """What a request to this server gives; counts failures in a row."""
        try:
            result = await work
        except AwayError as error:
            self.failed(error.loggable)
            raise
        self.answered()
        return result

    def answered(self) -> None:
        """A request succeeded: what failed before it is no longer in a row."""
        self._failures = 0

    def failed(self, why: str) -> None:
        """Count a failure; so many in a row open the breaker until the next good look."""
        self._failures += 1
        if self.ready and self._failures >= self._breaker_failures:
            why = f"{self._failures} requests in a row failed, the last with: {why}"
            self.exclude(why, abort=False)  # other streams on it may be well

    @contextmanager
    def busy(self, rows: int) -> Generator[None]:
        """Count completions in progress."""
        self.rows += rows
        try:
            yield
        finally:
            self.rows -= rows

    async def is_healthy(self, timeout_s: float) -> bool:
        """Whether it answers a look. Raises `AwayError` or `RefusedError` with the reason."""
        try:
            await self.connection.get("/health", timeout_s=timeout_s)
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise  # a proxy may let nothing but /v1 through: then its answer is the look
        return True

    async def names(self, timeout_s: float) -> set[str]:
        """Every model name that it serves now: the base model's and its adapters'."""
        return {entry["id"] for entry in await self._models(timeout_s)}

    async def model(self, wanted: str, timeout_s: float) -> ServedModel:
        """The base model that it serves. Raises `EngineUnavailableError` if that is not clear."""
        bases = [entry for entry in await self._models(timeout_s) if not entry.get("parent")]
        named = [entry for entry in bases if entry["id"] == wanted] if wanted else bases
        if len(named) != 1:
            names = ", ".join(entry["id"] for entry in bases) or "no model"
            raise EngineUnavailableError(
                f"vLLM at {self.url} serves {names}"
                + (f", not {wanted!r}" if wanted else "")
                + ": set engine.model_name to the one to use"
            )
        try:
            version = await self.connection.get("/version", timeout_s=timeout_s)
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise
            version = None  # a proxy that lets nothing but /v1 through
        found = cast(dict[str, Any], version) if isinstance(version, dict) else {}
        return ServedModel(
            named[0]["id"],
            str(named[0].get("root") or ""),
            int(named[0].get("max_model_len") or 0),
            str(found.get("version", "")),
        )

    async def _models(self, timeout_s: float) -> list[dict[str, Any]]:
        answer = await self.connection.get("/v1/models", timeout_s=timeout_s)
        try:
            return [entry for entry in answer["data"] if isinstance(entry["id"], str)]
        except (TypeError, KeyError) as error:
            raise EngineUnavailableError(
                f"{self.url}/v1/models is not a list of models: is it a vLLM server?"
            ) from error

    async def load(self, name: str, path: str, timeout_s: float) -> None:
        """Load an adapter under a name that says its content; one that is there already is it.

        Raises `RefusedError` or `AwayError`.
        """
        try:
            await self.connection.post(
                "/v1/load_lora_adapter",
                {"lora_name": name, "lora_path": path},
                timeout_s=timeout_s,
            )
        except RefusedError as error:
            if "already been loaded" not in str(error):
                raise
        except AwayError as error:
            if error.status is None:
                raise
            await self.is_healthy(timeout_s)  # else it is the server that failed
            raise RefusedError(error.status, str(error), None) from error
        self.adapters.add(name)

    async def unload(self, name: str, timeout_s: float) -> None:
        """Forget a name; that it is not there is as good."""
        self.adapters.discard(name)
        try:
            await self.connection.post(
                "/v1/unload_lora_adapter", {"lora_name": name}, timeout_s=timeout_s
            )
        except RefusedError as error:
            if error.status != NOT_FOUND:
                raise

    async def token_logprobs(
        self,
        model: str,
        sequences: Sequence[Sequence[int]],
        num_prompt: int,
        temperature: float,
        *,
        priority: int,
        timeout_s: float | None = None,
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of given tokens under a served name."""
        body = wire.scoring_body(model, sequences, temperature, priority=priority)
        answer = await self.connection.post("/v1/completions", body, timeout_s=timeout_s)
        return wire.token_logprobs(answer, sequences, num_prompt, temperature)
