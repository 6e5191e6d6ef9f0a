"""The Engine protocol over the decode thread."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bond_core.config import LocalEngineConfig, ModelConfig
from bond_core.engines.base import Check, EngineInfo, Partial
from bond_core.engines.limits import check_sampling, check_scoring_temperature, room_for_answer
from bond_core.engines.local.adapters import merge_adapter
from bond_core.engines.local.forward import Forward
from bond_core.engines.local.loading import context_limit, end_token_ids, load_policy
from bond_core.engines.local.rows import GenerateRequest
from bond_core.engines.local.scoring import ScoreRequest
from bond_core.engines.local.selfcheck import measure_noise
from bond_core.engines.local.versions import ServedVersions
from bond_core.engines.local.weights import PolicyWeights, SwitchableModel, twin
from bond_core.engines.local.worker import DecodeThread, Request
from bond_core.engines.rendering import render_prompt, tokenizer_sha256
from bond_core.errors import (
    AdapterError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
)
from bond_core.fingerprints import model_digest
from bond_core.tokenizing import rendered
from bond_core.types import (
    REFERENCE_VERSION,
    Completion,
    Conversation,
    Generation,
    SamplingParams,
    TextDelta,
)

T = TypeVar("T")


class LocalEngine:
    """A transformers causal language model in this process.

    Decoding happens in a thread of its own; every async method may be called from any event loop.
    """

    def __init__(self, config: LocalEngineConfig, model: ModelConfig) -> None:
        self._config = config
        self._model_config: ModelConfig | None = model
        self._name = model.served_name
        self._base_revision = ""
        self._threads: int | None = config.threads
        self._seed: int | None = None
        self._model: SwitchableModel | None = None
        self._tokenizer: Any = None
        self._worker: DecodeThread | None = None
        self._info: EngineInfo | None = None
        self._versions = ServedVersions(config.max_adapters)

    @classmethod
    def over(
        cls,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        max_rows: int,
        max_context_tokens: int,
        name: str,
        seed: int | None = None,
        base_revision: str = "",
    ) -> "LocalEngine":
        """An engine around a model in memory, whose parameter storage it shares.

        The model may carry PEFT adapters and be in training in another thread: the engine runs a
        module of its own over the frozen base parameters. `seed` makes unseeded sampling
        reproducible for one order of calls. `base_revision` is the `model_digest` of the folder
        that the model was read from, if it was. Torch's thread count is left as it is.
        """
        config = LocalEngineConfig(max_rows=max_rows, max_context_tokens=max_context_tokens)
        engine = cls(config, ModelConfig(path=Path(name), name=name.replace(" ", "-")))
        engine._model_config = None
        engine._threads = None
        engine._seed = seed
        engine._base_revision = base_revision
        engine._model = SwitchableModel(twin(model))
        engine._tokenizer = tokenizer
        return engine

    @property
    def info(self) -> EngineInfo:
        """What is served. Raises `EngineUnavailableError` before `start`."""
        if self._info is None:
            raise EngineUnavailableError("the local engine has not been started: await start()")
        return self._info

    async def start(self) -> None:
        """Load the model, check that it is computed exactly, start the decode thread."""
        await asyncio.to_thread(self._open)

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        """See `Engine.generate`. Rows beyond `max_rows` start as others end."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Completion, ...]] = loop.create_future()
        done, failed = _settlers(loop, answer)
        request = await self._request(version, prompt, params, n, done, failed)
        if partial is not None:
            partial.prompt_token_ids = request.prompt_token_ids
            request.completions = partial.completions
        try:
            completions = await self._submitted(request, answer)
        except asyncio.CancelledError:
            if partial is not None:
                # the decode thread may end more until it notes that nobody waits for them
                partial.completions = dict(request.completions)
                partial.unfinished.update(request.unfinished(partial.completions))
            raise
        return Generation(request.prompt_token_ids, completions)

    async def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncIterator[TextDelta]:
        """See `Engine.stream`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[TextDelta | tuple[Completion, ...] | Exception] = asyncio.Queue()

        def put(item: TextDelta | tuple[Completion, ...] | Exception) -> None:
            _call_soon(loop, pieces.put_nowait, item)

        request = await self._request(version, prompt, params, 1, put, put)
        request.piece = put
        worker = self._running()
        worker.submit(request)
        ended, shown = False, 0
        try:
            while True:
                item = await pieces.get()
                if isinstance(item, TextDelta):
                    shown += len(item.details)
                    yield item
                    continue
                ended = True
                if isinstance(item, Exception):
                    raise item
                rest = item[0].details[shown:]
                drawn = len(item[0].token_ids)
                yield TextDelta("", item[0], request.prompt_token_ids, rest, num_tokens=drawn)
                return
        finally:
            if not ended:
                worker.cancel(request)

    async def token_logprobs(
        self,
        version: str,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """See `Engine.token_logprobs`. The prompt is computed once for all completions."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[tuple[float, ...]]] = loop.create_future()
        done, failed = _settlers(loop, answer)
        weights = self._weights(version)
        self._check_scorable(prompt_token_ids, completions, temperature)
        request = ScoreRequest(
            weights=weights,
            prompt_token_ids=tuple(prompt_token_ids),
            completions=tuple(map(tuple, completions)),
            temperature=temperature,
            done=done,
            failed=failed,
        )
        return await self._submitted(request, answer)

    async def count_prompt_tokens(self, prompt: Conversation) -> int:
        """Tokens of the rendered prompt."""
        self._running()
        return len(await self._rendered(prompt))

    async def load_adapter(self, version: str, path: Path, check: Check | None = None) -> None:
        """Merge a PEFT LoRA directory and serve it as `version`.

        Raises `AdapterError` if the name is taken, `max_adapters` are resident, or the directory
        is incomplete, not plain LoRA in safetensors, or made for another model.
        """
        model = self._loaded_model()
        self._versions.check_room(version)
        weights = await asyncio.to_thread(
            lambda: model.checked(version, merge_adapter(path, model))
        )
        self._versions.add(weights)
        if check is not None:
            try:
                await check(self)
            except BaseException:
                await self.drop_adapter(version)
                raise

    def publish(self, version: str, weights: Mapping[str, Tensor]) -> None:
        """Serve merged weights as `version`, in place of earlier ones of that name if there are.

        `weights` maps parameter names to whole tensors; parameters that it lacks are the
        reference's. They are copied. Requests that are running end on the weights they started
        with. May be called from any thread. Raises `AdapterError` if a tensor does not fit.
        """
        if version == REFERENCE_VERSION:
            raise AdapterError(f"{REFERENCE_VERSION} is the reference and cannot be replaced")
        self._versions.put(self._loaded_model().checked(version, weights))

    async def drop_adapter(self, version: str) -> None:
        """Stop serving a version at once. Its running requests end on it, then it is freed."""
        self._versions.drop(version)

    async def loaded_versions(self) -> list[str]:
        """Names that `generate` accepts now, the reference first."""
        return self._versions.names()

    async def health(self) -> bool:
        """Whether the decode thread takes requests."""
        return self._worker is not None and self._worker.alive

    async def close(self) -> None:
        """End the decode thread and let go of the weights; running requests fail."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.close)
        self._model = None

    @property
    def running_rows(self) -> int:
        """Candidates being drawn now."""
        return self._running().rows

    @property
    def prefills(self) -> int:
        """Prompts that have gone through the model since the start."""
        return self._running().prefills

    def _open(self) -> None:
        config = self._config
        if self._threads is not None:
            torch.set_num_threads(self._threads)  # of all threads that have not computed yet
        if self._model is None:
            if self._model_config is None:
                raise EngineUnavailableError("the local engine was closed; make a new one")
            path = self._model_config.folder
            module, self._tokenizer = load_policy(path, self._model_config.dtype, config.device)
            self._model = SwitchableModel(module)
            self._base_revision = model_digest(path)
        module, tokenizer = self._model.module, self._tokenizer
        if not tokenizer.chat_template:
            raise ModelLoadError(f"the tokenizer of {self._name} has no chat template: set one")
        max_context_tokens = context_limit(module, config.max_context_tokens)
        forward = Forward(self._model)
        self._info = EngineInfo(
            base_model=self._name,
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            max_context_tokens=max_context_tokens,
            adapters=True,
            logprob_noise_nats=measure_noise(forward, max_context_tokens),
            base_revision=self._base_revision,
        )
        ends = end_token_ids(module, tokenizer)
        self._worker = DecodeThread(forward, tokenizer, ends, config.max_rows, self._seed)
        self._worker.start()

    async def _request(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int,
        done: Callable[[tuple[Completion, ...]], None],
        failed: Callable[[Exception], None],
    ) -> GenerateRequest:
        weights = self._weights(version)
        check_sampling(params, n, self._loaded_model().vocab_size)
        prompt_token_ids = tuple(await self._rendered(prompt))
        limit = self.info.max_context_tokens
        room = room_for_answer(len(prompt_token_ids), limit, params.max_tokens)
        return GenerateRequest(weights, prompt_token_ids, params, n, room, done, failed)

    async def _rendered(self, prompt: Conversation) -> list[int]:
        tokenizer = self._tokenizer
        return await rendered(lambda: render_prompt(tokenizer, prompt), [prompt])

    async def _submitted(self, request: Request, answer: asyncio.Future[T]) -> T:
        """The answer to a request, which is cancelled with the caller."""
        worker = self._running()
        worker.submit(request)
        try:
            return await answer
        except asyncio.CancelledError:
            worker.cancel(request)
            raise

    def _check_scorable(
        self,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float,
    ) -> None:
        check_scoring_temperature(temperature)
        if not prompt_token_ids:
            raise InvalidRequestError("the prompt has no tokens", param="prompt_token_ids")
        vocab_size = self._loaded_model().vocab_size
        for tokens in (prompt_token_ids, *completions):
            if any(not 0 <= token < vocab_size for token in tokens):
                raise InvalidRequestError(
                    f"a token id is outside of the vocabulary (0 to {vocab_size - 1})"
                )
        longest = max(map(len, completions), default=0)
        limit = self.info.max_context_tokens
        if len(prompt_token_ids) + longest > limit:
            raise InvalidRequestError(
                f"prompt ({len(prompt_token_ids)} tokens) and completion ({longest}) are longer "
                f"than the context ({limit})"
            )

    def _weights(self, version: str) -> PolicyWeights:
        self._running()
        return self._versions.weights(version)

    def _running(self) -> DecodeThread:
        if self._worker is None:
            raise EngineUnavailableError("the local engine is not running: await start()")
        return self._worker

    def _loaded_model(self) -> SwitchableModel:
        if self._model is None:
            raise EngineUnavailableError("the local engine is not running: await start()")
        return self._model


def _settlers(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T]
) -> tuple[Callable[[T], None], Callable[[Exception], None]]:
    """Callbacks for the decode thread that settle a future of the caller's event loop."""

    def settle(result: T | Exception) -> None:
        if answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def post(result: T | Exception) -> None:
        _call_soon(loop, settle, result)

    return post, post


def _call_soon(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object
) -> None:
    # The caller's loop may have been closed in the meantime; then nobody waits for the answer.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)
