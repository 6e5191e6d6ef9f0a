"""The Engine protocol over a fleet of vLLM servers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from bond_core.config import ModelConfig, VllmEngineConfig
from bond_core.engines.base import Check, EngineInfo, Partial
from bond_core.engines.limits import check_sampling, room_for_answer
from bond_core.engines.vllm import answers, wire
from bond_core.engines.vllm.adapters import Adapter, AdapterFanOut
from bond_core.engines.vllm.connection import Connection, RefusedError, explained_refusal
from bond_core.engines.vllm.fleet import Fleet, affinity_of
from bond_core.engines.vllm.inspection import inspect, why_unlike
from bond_core.engines.vllm.opening import (
    NO_FOLDER,
    folder_identity,
    measured_noise,
    open_reference,
    open_replicas,
    refuse_other_weights,
    say_what_is_less,
    vocab_size_of,
)
from bond_core.engines.vllm.prompts import prompt_tokens, refuse_empty
from bond_core.engines.vllm.replica import Replica
from bond_core.engines.vllm.scoring import SCORED_AT_ONCE, ScoringAt, scorable
from bond_core.engines.vllm.versions import ServedVersions
from bond_core.engines.vllm.zero_adapter import write_zero_adapter
from bond_core.errors import (
    BondError,
    ConfigError,
    EngineUnavailableError,
    InvalidRequestError,
)
from bond_core.types import (
    REFERENCE_VERSION,
    Conversation,
    Generation,
    SamplingParams,
    TextDelta,
)

T = TypeVar("T")

SCORING_PRIORITY = 1
"""Of given tokens, which nobody waits for: after every answer (vLLM takes the lowest first)."""
BACKGROUND_PRIORITY = 10
"""Of everything that a trainer asks for."""
BACKGROUND_REQUESTS = 64
"""Of a trainer at one server at once: a batch of rollouts is hundreds, and opening a connection for
each holds up the server's loop, and so users. How many users' requests there are is the gateway's
to bound."""
UNKNOWN_VOCABULARY = 1 << 62
"""Where there is no folder: vLLM itself refuses tokens outside of it."""


class VllmEngine:
    """One or many `vllm serve` processes. See `Engine` for what each method promises.

    `background` is a trainer's engine: it uses the replicas that are kept for training, if any,
    and asks for everything at low priority. `adapters_dir` is where versions are written; without
    it, or without the model's folder, only the reference is served.
    """

    def __init__(
        self,
        config: VllmEngineConfig,
        model: ModelConfig,
        *,
        adapters_dir: Path | None = None,
        background: bool = False,
    ) -> None:
        self._config = config
        self._model = model
        self._adapters_dir = adapters_dir
        self._background = background
        self._urls = (background and config.training_urls) or config.urls
        self._fleet: Fleet | None = None
        self._served: ServedVersions | None = None
        self._priorities = False
        self._vocab_size = UNKNOWN_VOCABULARY
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        """What is served. Raises `EngineUnavailableError` before `start`."""
        if self._info is None:
            raise EngineUnavailableError("the vLLM engine has not been started: await start()")
        return self._info

    async def start(self) -> None:
        """Connect, find out what the servers can do, and give them the reference."""
        if not self._urls:
            raise ConfigError(
                "engine.urls is empty: name a vLLM server, or let `bond up --engine vllm` start one"
            )
        config = self._config
        limit = BACKGROUND_REQUESTS if self._background else 0
        replicas = [
            Replica(
                Connection(
                    url, config.api_key, config.timeout_s, config.connect_timeout_s, limit=limit
                ),
                config.breaker_failures,
            )
            for url in self._urls
        ]
        self._fleet = Fleet(replicas, config.health_every_s, config.health_timeout_s)
        fan_out = AdapterFanOut(self._fleet, ScoringAt)
        self._served = ServedVersions(
            fan_out,
            max_adapters=config.max_adapters,
            adapters_dir=self._adapters_dir,
            adapters_path=config.adapters_path,
            background=self._background,
        )
        try:
            await self._open(self._fleet, fan_out, self._served)
        except BaseException:
            await self.close()
            raise
        self._fleet.watch(self._restore)

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        """See `Engine.generate`; all n are drawn by one server in one request."""
        self._check_request(version, prompt, params, n)

        async def draw(replica: Replica) -> Generation:
            route, body = self._body(version, prompt, params, n)
            if partial is None:
                return answers.generation(await replica.connection.post(route, body), params, n)
            partial.completions.clear()  # of a server that broke off
            partial.unfinished.clear()
            together = answers.StreamedChoices(params, n, partial)
            events = replica.connection.events(route, body | {"stream": True})
            async with contextlib.aclosing(events):
                async for data in events:
                    together.push(data)
            return together.generation()

        try:
            return await self._called(version, affinity_of(prompt), n, draw)
        except RefusedError as error:
            raise await self._explained(error, prompt, params) from error

    async def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncIterator[TextDelta]:
        """See `Engine.stream`."""
        self._check_request(version, prompt, params, 1)
        fleet = self._running()
        answer = answers.StreamedAnswer(params)
        route, body = self._body(version, prompt, params, 1)
        async with fleet.held(affinity_of(prompt), 1) as replica:
            try:
                sent = self._events(replica, version, route, body | {"stream": True})
                async with contextlib.aclosing(sent) as events:
                    async for data in events:
                        if delta := answer.push(data):
                            yield delta
            except RefusedError as error:
                raise await self._explained(error, prompt, params) from error
        completion, prompt_token_ids = answer.completion(), answer.prompt_token_ids
        yield TextDelta("", completion, prompt_token_ids, num_tokens=len(completion.token_ids))

    async def token_logprobs(
        self,
        version: str,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """See `Engine.token_logprobs`. At a temperature other than 1 the servers send the whole
        vocabulary for every token (`--max-logprobs -1`), so that is for small vocabularies."""
        self._versions.check(version)
        sequences = scorable(
            prompt_token_ids,
            completions,
            temperature,
            max_context_tokens=self.info.max_context_tokens,
            vocab_size=self._vocab_size,
        )
        affinity = ",".join(map(str, prompt_token_ids[:32]))
        found: list[tuple[float, ...]] = []
        for start in range(0, len(sequences), SCORED_AT_ONCE):
            part = sequences[start : start + SCORED_AT_ONCE]

            async def score(
                replica: Replica, part: list[list[int]] = part
            ) -> list[tuple[float, ...]]:
                return await replica.token_logprobs(
                    self._versions.name_of(version),
                    part,
                    len(prompt_token_ids),
                    temperature,
                    priority=self._priority(SCORING_PRIORITY),
                )

            try:
                found += await self._called(version, affinity, len(part), score)
            except RefusedError as error:
                raise explained_refusal(error) from error
        scored = iter(found)
        return [next(scored) if tokens else () for tokens in completions]

    async def count_prompt_tokens(self, prompt: Conversation) -> int:
        """Tokens of the prompt as the servers' chat template renders it."""
        self._running()
        return len(await self._prompt_tokens(prompt))

    async def load_adapter(self, version: str, path: Path, check: Check | None = None) -> None:
        """See `Engine.load_adapter`: on every server that answers, or on none.

        Raises `AdapterError` naming the server that refuses it, and why.
        """
        versions = self._versions
        if not self.info.adapters:
            raise EngineUnavailableError(
                f"{version} cannot be loaded: {self.info.no_adapters_because}"
            )
        await versions.load(version, path, check)

    async def drop_adapter(self, version: str) -> None:
        """See `Engine.drop_adapter`. vLLM ends what runs on the name before it frees its slot."""
        await self._versions.drop(version)

    async def loaded_versions(self) -> list[str]:
        """Names that `generate` accepts now, the reference first."""
        return self._versions.names()

    async def health(self) -> bool:
        """Whether any server takes requests."""
        return self._fleet is not None and any(r.ready for r in self._fleet.replicas)

    def servers(self) -> dict[str, bool]:
        """Whether each server takes requests, by its base URL."""
        return {} if self._fleet is None else {r.url: r.ready for r in self._fleet.replicas}

    async def close(self) -> None:
        """Close the connections; running requests fail. The servers go on."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            await fleet.close()

    async def _open(self, fleet: Fleet, fan_out: AdapterFanOut, versions: ServedVersions) -> None:
        model, config = self._model, self._config
        abilities = await open_replicas(fleet, config)
        versions.base_name = abilities[0].model.name
        self._priorities = all(ability.priorities for ability in abilities)
        say_what_is_less(abilities, self._background and not config.training_urls)
        because = NO_FOLDER
        if model.path is not None:
            await asyncio.to_thread(refuse_other_weights, abilities, model.folder)
            self._vocab_size = vocab_size_of(model.folder) or self._vocab_size
        if self._adapters_dir is not None and model.path is not None:
            path = self._adapters_dir / REFERENCE_VERSION
            zero = await open_reference(
                fan_out,
                abilities,
                config.max_adapters,
                lambda: versions.adapter(
                    REFERENCE_VERSION, write_zero_adapter(model.folder, path), None
                ),
            )
            because = zero if isinstance(zero, str) else ""
            if isinstance(zero, Adapter) and config.reference_as == "adapter":
                versions.refer_to(zero)
        self._info = EngineInfo(
            base_model=model.served_name or versions.base_name,
            max_context_tokens=min(ability.model.max_model_len for ability in abilities),
            adapters=not because,
            logprob_noise_nats=await measured_noise(fleet, versions.name_of(REFERENCE_VERSION)),
            no_adapters_because=because,
            fields=wire.FIELDS,
            **await folder_identity(model, self._prompt_tokens),
        )

    async def _restore(self, replica: Replica) -> None:
        """Make a replica that came back what the others are, before it gets requests."""
        config, versions = self._config, self._versions
        found = await inspect(replica, config.model_name, config.health_timeout_s)
        like = versions.base_name, self.info, self._priorities
        if because := why_unlike(found, *like, config.max_adapters):
            raise EngineUnavailableError(because)
        async with versions.restored(replica):
            replica.admit()

    async def _called(
        self, version: str, affinity: str, rows: int, work: Callable[[Replica], Awaitable[T]]
    ) -> T:
        """A fleet's call; a server that lacks the version gets it and is asked again, once."""
        fleet = self._running()

        async def with_version(replica: Replica) -> T:
            try:
                return await work(replica)
            except RefusedError as error:
                await self._versions.bring_back(replica, version, error)
                return await work(replica)

        return await fleet.call(affinity, rows, with_version)

    async def _events(
        self, replica: Replica, version: str, route: str, body: dict[str, Any]
    ) -> AsyncGenerator[str]:
        """A stream's data; a refusal comes before any of it."""
        for is_second in (False, True):
            events = replica.connection.events(route, body)
            try:
                async with contextlib.aclosing(events):
                    async for data in events:
                        yield data
                return
            except RefusedError as error:
                if is_second:
                    raise
                await self._versions.bring_back(replica, version, error)

    def _body(
        self, version: str, prompt: Conversation, params: SamplingParams, n: int
    ) -> tuple[str, dict[str, Any]]:
        if params.top_k > self._vocab_size:  # the whole vocabulary, in a number that vLLM can read
            params = replace(params, top_k=0)
        return wire.request(
            self._versions.name_of(version), prompt, params, n, priority=self._priority(0)
        )

    def _priority(self, own: int) -> int:
        if not self._priorities:
            return 0
        return BACKGROUND_PRIORITY if self._background else own

    def _check_request(
        self, version: str, prompt: Conversation, params: SamplingParams, n: int
    ) -> None:
        self._versions.check(version)
        check_sampling(params, n, self._vocab_size, wire.FIELDS)
        refuse_empty(prompt)

    async def _explained(
        self, error: RefusedError, prompt: Conversation, params: SamplingParams
    ) -> BondError:
        """The error of a refused request; a prompt that does not fit is told with its length."""
        refusal = explained_refusal(error)
        if isinstance(refusal, InvalidRequestError):
            try:
                tokens = await self._prompt_tokens(prompt)
                room_for_answer(len(tokens), self.info.max_context_tokens, params.max_tokens)
            except InvalidRequestError as explained:
                return explained
            except BondError:
                return refusal
        return refusal

    async def _prompt_tokens(self, prompt: Conversation) -> list[int]:
        return await prompt_tokens(self._running(), self._versions.base_name, prompt)

    @property
    def _versions(self) -> ServedVersions:
        self._running()
        assert self._served is not None, "there is a fleet"
        return self._served

    def _running(self) -> Fleet:
        if self._fleet is None:
            raise EngineUnavailableError("the vLLM engine is not running: await start()")
        return self._fleet
