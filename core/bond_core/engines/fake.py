"""A deterministic engine without a model: a real law over tokens, made of hashes.

Each position of an answer has a distribution that depends on the version, the prompt and the
position. Sampling parameters act on it as on a model's logits, so that what `generate` reports is
what `token_logprobs` finds. The same request gives the same answer, always: the noise is a hash
too, seed or no seed.
"""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from bond_core.config import FakeEngineConfig, ModelConfig
from bond_core.engines.base import CHAT_FIELDS, Check, EngineInfo, Partial
from bond_core.engines.fake_language import (
    END_TOKEN,
    VOCAB_SIZE,
    FakeTokenizer,
    Law,
    adjusted,
    base_logits,
    plain_law,
    prompt_key,
)
from bond_core.engines.limits import check_sampling, check_scoring_temperature, room_for_answer
from bond_core.engines.text import IncrementalText
from bond_core.errors import (
    AdapterError,
    BondError,
    EngineUnavailableError,
    InvalidRequestError,
    UnknownVersionError,
)
from bond_core.types import (
    REFERENCE_VERSION,
    Alternative,
    Completion,
    Conversation,
    FinishReason,
    Generation,
    SamplingParams,
    TextDelta,
    TokenDetail,
    ToolCall,
)

MAX_CONTEXT_TOKENS = 4096
FIELDS = CHAT_FIELDS | {"min_p", "repetition_penalty", "response_format", "structured_outputs"}
"""Each changes the law in its own way; tools are called, the others mean nothing else here."""


class FakeEngine:
    """Engine protocol without a model; for tests, demonstrations and client development.

    `failure`, when set, is what every call raises, and `health` turns false. `in_progress` counts
    completions that hold capacity now, `drawn` those that have ended.
    """

    def __init__(self, config: FakeEngineConfig, model: ModelConfig) -> None:
        self._delay_s = config.delay_s
        self._name = model.served_name
        self._adapters = config.adapters
        self._capacity = asyncio.Semaphore(config.capacity)
        self._closed = asyncio.Event()
        self._started = False
        self._tokenizer = FakeTokenizer()
        self._versions = [REFERENCE_VERSION]
        self.failure: BondError | None = None
        self.in_progress = 0
        self.drawn = 0

    @property
    def info(self) -> EngineInfo:
        """What is served. Raises `EngineUnavailableError` before `start`."""
        if not self._started:
            raise EngineUnavailableError("the fake engine has not been started: await start()")
        return EngineInfo(
            base_model=self._name,
            tokenizer_sha256=hashlib.sha256(b"bondserve fake tokenizer").hexdigest(),
            max_context_tokens=MAX_CONTEXT_TOKENS,
            adapters=self._adapters,
            no_adapters_because="" if self._adapters else "set engine.adapters to true",
            logprob_noise_nats=1e-9,
            base_revision=hashlib.sha256(b"bondserve fake model").hexdigest(),
            fields=FIELDS,
        )

    async def start(self) -> None:
        """Nothing to load."""
        self._started = True

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        """See `Engine.generate`. Each completion takes `delay_s` and a place of the capacity."""
        prompt_token_ids, room = self._admitted(version, prompt, params, n)
        partial = partial or Partial()
        partial.prompt_token_ids = prompt_token_ids
        if self._delay_s == 0 and not self._capacity.locked():
            drawn = [self._draw(version, prompt_token_ids, params, i, room) for i in range(n)]
            self.drawn += n
            return Generation(prompt_token_ids, tuple(drawn))

        async def draw(index: int) -> Completion:
            async with self._place():
                drawn = self._draw(version, prompt_token_ids, params, index, room)
                began = time.monotonic()
                try:
                    await self._work(self._delay_s)
                except asyncio.CancelledError:
                    share = min((time.monotonic() - began) / (self._delay_s or 1.0), 1.0)
                    partial.unfinished[index] = int(share * len(drawn.token_ids))
                    raise
                self.drawn += 1
                partial.completions[index] = drawn
                return drawn

        tasks = [asyncio.create_task(draw(index)) for index in range(n)]
        try:
            return Generation(prompt_token_ids, tuple(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncIterator[TextDelta]:
        """See `Engine.stream`. The delay is spread over the pieces."""
        prompt_token_ids, room = self._admitted(version, prompt, params, 1)
        async with self._place():
            completion = self._draw(version, prompt_token_ids, params, 0, room)
            self.drawn += 1
            text = IncrementalText(self._tokenizer, params.stop)
            pause_s = self._delay_s / len(completion.token_ids)
            waiting: list[TokenDetail] = []
            told = prompt_token_ids  # by the first piece
            for position, token_id in enumerate(completion.token_ids):
                if pause_s:
                    await self._work(pause_s)
                waiting += completion.details[position : position + 1]
                if completion.tool_calls or token_id == END_TOKEN:
                    continue
                if piece := text.push(token_id):
                    yield TextDelta(piece, None, told, tuple(waiting), num_tokens=position + 1)
                    waiting.clear()
                    told = ()
            rest = "" if completion.tool_calls else text.finish()
            yield TextDelta(
                rest,
                completion,
                prompt_token_ids,
                tuple(waiting),
                tuple({"index": i, **c.as_dict()} for i, c in enumerate(completion.tool_calls)),
                num_tokens=len(completion.token_ids),
            )

    async def token_logprobs(
        self,
        version: str,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """See `Engine.token_logprobs`."""
        self._check(version)
        check_scoring_temperature(temperature)
        if not prompt_token_ids:
            raise InvalidRequestError("the prompt has no tokens", param="prompt_token_ids")
        if any(not 0 <= token < VOCAB_SIZE for c in completions for token in c):
            raise InvalidRequestError(
                f"a token id is outside of the vocabulary (0 to {VOCAB_SIZE - 1})"
            )
        longest = max(map(len, completions), default=0)
        if len(prompt_token_ids) + longest > MAX_CONTEXT_TOKENS:
            raise InvalidRequestError(
                f"prompt ({len(prompt_token_ids)} tokens) and completion ({longest}) are longer "
                f"than the context ({MAX_CONTEXT_TOKENS})"
            )
        prompt = prompt_key(prompt_token_ids)
        laws = [plain_law(version, prompt, t, temperature, 0, 1.0) for t in range(longest)]
        return [tuple(laws[t].logprobs[token] for t, token in enumerate(c)) for c in completions]

    async def count_prompt_tokens(self, prompt: Conversation) -> int:
        """Bytes of the prompt, with the roles."""
        self._check(REFERENCE_VERSION)
        return len(self._tokenizer.render(prompt))

    async def load_adapter(self, version: str, path: Path, check: Check | None = None) -> None:
        """Accept a PEFT directory; its files must exist, and are not read."""
        self._check(REFERENCE_VERSION)
        if version in self._versions:
            raise AdapterError(f"a version {version!r} is loaded already: give a new name")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if not (path / file).is_file():
                raise AdapterError(f"{path / file} does not exist: {path} is no PEFT directory")
        self._versions.append(version)
        if check is not None:
            try:
                await check(self)
            except BaseException:
                self._versions.remove(version)
                raise

    async def drop_adapter(self, version: str) -> None:
        """Stop serving a version; running requests end on it."""
        self._check(version)
        if version == REFERENCE_VERSION:
            raise AdapterError(f"{REFERENCE_VERSION} is the reference and cannot be dropped")
        self._versions.remove(version)

    async def loaded_versions(self) -> list[str]:
        """Names that `generate` accepts now, the reference first."""
        return list(self._versions)

    async def health(self) -> bool:
        """Whether calls would succeed."""
        return self._started and not self._closed.is_set() and self.failure is None

    async def close(self) -> None:
        """End; running requests fail with `EngineUnavailableError`."""
        self._closed.set()

    def _check(self, version: str) -> None:
        if self.failure is not None:
            raise self.failure
        if not self._started or self._closed.is_set():
            raise EngineUnavailableError("the fake engine is not running: await start()")
        if version not in self._versions:
            raise UnknownVersionError(
                f"policy version {version!r} is not loaded; loaded are {', '.join(self._versions)}"
            )

    def _admitted(
        self, version: str, prompt: Conversation, params: SamplingParams, n: int
    ) -> tuple[tuple[int, ...], int]:
        """The prompt's tokens and the room for an answer, of a request that is in order."""
        self._check(version)
        check_sampling(params, n, VOCAB_SIZE, FIELDS)
        _check_tools(params.further)
        prompt_token_ids = self._tokenizer.render(prompt)
        room = room_for_answer(len(prompt_token_ids), MAX_CONTEXT_TOKENS, params.max_tokens)
        return prompt_token_ids, room

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        """Hold one place of the capacity."""
        async with self._capacity:
            self.in_progress += 1
            try:
                yield
            finally:
                self.in_progress -= 1

    async def _work(self, seconds: float) -> None:
        """Take time, unless the engine is closed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise EngineUnavailableError("the fake engine was closed while the request ran")

    def _draw(
        self,
        version: str,
        prompt_token_ids: tuple[int, ...],
        params: SamplingParams,
        index: int,
        room: int,
    ) -> Completion:
        """Candidate `index`, token by token."""
        prompt = prompt_key(prompt_token_ids, params.further)
        noise = random.Random(f"{version}/{prompt.hex()}/{params.seed}/{index}")
        text = IncrementalText(self._tokenizer, params.stop)
        token_ids: list[int] = []
        logprobs: list[float] = []
        details: list[TokenDetail] = []
        reason: FinishReason = "length"
        while len(token_ids) < room:
            law = _law(version, prompt, params, token_ids)
            token, logprob = law.best() if params.temperature == 0 else law.draw(noise.random())
            token_ids.append(token)
            logprobs.append(logprob if params.temperature else 0.0)
            if params.top_logprobs is not None:
                details.append(self._detail(law, token, params.top_logprobs))
            if token != END_TOKEN and params.stop:
                text.push(token)
            if token == END_TOKEN or text.stopped:
                reason = "stop"
                break
        answer = self._tokenizer.decode(token_ids)
        if params.stop:
            text.finish()
            answer = text.text
        calls = _tool_calls(params.further, index, answer)
        if calls:
            answer, reason = "", "tool_calls"
        return Completion(
            answer, tuple(token_ids), tuple(logprobs), reason, tuple(details), tool_calls=calls
        )

    def _detail(self, law: Law, token: int, top: int) -> TokenDetail:
        def named(token: int) -> tuple[str, float]:
            return self._tokenizer.decode([token]), law.logprobs[token]

        return TokenDetail(*named(token), tuple(Alternative(*named(t)) for t in law.top(top)))


def _law(version: str, prompt: bytes, params: SamplingParams, token_ids: list[int]) -> Law:
    """Of the next token; of a greedy answer the model's own, whose likeliest token it takes."""
    position, temperature = len(token_ids), params.temperature or 1.0
    truncation = (params.top_k, params.top_p) if params.temperature else (0, 1.0)
    if not (params.logit_bias or params.presence_penalty or params.frequency_penalty):
        return plain_law(version, prompt, position, temperature, *truncation)
    logits = adjusted(base_logits(version, prompt, position), params, token_ids)
    return Law.of(logits, temperature, *truncation)


def _check_tools(further: Mapping[str, Any]) -> None:
    """Raise `InvalidRequestError` for tools, or a choice of one, that have no function's name."""
    tools, choice = further.get("tools", []), further.get("tool_choice", "auto")
    listed: list[object] = cast(list[object], tools) if isinstance(tools, list) else [tools]
    for name, given in (("tools", listed), ("tool_choice", [choice])):
        for item in given:
            if name == "tool_choice" and item in ("auto", "none", "required"):
                continue
            try:
                named = cast(Any, item)["function"]["name"]
            except (KeyError, TypeError, IndexError):
                named = None
            if not isinstance(named, str):
                raise InvalidRequestError(f"{name} must name a function", param=name)


def _tool_calls(further: Mapping[str, Any], index: int, answer: str) -> tuple[ToolCall, ...]:
    """With tools, every other candidate calls the first of them, or all the one that is chosen."""
    tools, choice = further.get("tools"), further.get("tool_choice", "auto")
    if not tools or choice == "none" or (choice == "auto" and index % 2 == 0):
        return ()
    chosen = cast(Mapping[str, Any], choice if isinstance(choice, Mapping) else tools[0])
    name = chosen["function"]["name"]
    return (ToolCall(f"call_{index}", name, json.dumps({"text": answer})),)
