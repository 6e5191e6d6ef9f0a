"""A sequence-classification reward model in this process."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bond_core.config import ClassifierScorerConfig
from bond_core.errors import InvalidRequestError, ModelLoadError, ScoringError
from bond_core.fingerprints import model_and_tokenizer_digest
from bond_core.pretrained import check_folder, load_pretrained
from bond_core.tokenizing import encode_rendered, load_tokenizer, render_text, rendered
from bond_core.types import Conversation, Message

_Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One call of `score` that waits for its turn, as token sequences."""

    sequences: list[_Tokens]
    answer: asyncio.Future[dict[_Tokens, float]]


class ClassifierScorer:
    """Raw logits of a reward model with one label, over its own chat template.

    The model runs in one worker thread. Calls that come in while it is busy are scored together,
    sorted by length; a sequence that occurs twice, in one call or several, is scored once.
    """

    def __init__(self, config: ClassifierScorerConfig) -> None:
        self._config = config
        self._model: PreTrainedModel | None = None
        self._identity: str | None = None
        self._tokenizer: Any = None
        self._max_tokens = config.max_tokens
        self._worker: ThreadPoolExecutor | None = None
        self._waiting: list[_Call] = []
        self._busy: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The model folder's name."""
        return self._config.path.resolve().name

    @property
    def identity(self) -> str:
        """See `Scorer.identity`: of weights, configuration, tokenizer and chat template.

        `bond_core.fingerprints.file_digest` says how weights too large to be read whole count.
        """
        if self._identity is None:
            raise ScoringError(f"scorer {self.name} has not been started: await start()")
        return self._identity

    async def start(self) -> None:
        """Load the model and its tokenizer. Raises `ModelLoadError`."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bond-scorer")
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._load)
        except ModelLoadError:
            await self.close()
            raise

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        """See `Scorer.score`."""
        if len(prompts) != len(completions):
            raise ScoringError(f"{len(prompts)} prompts and {len(completions)} completions")
        self._running()
        sequences = await rendered(
            lambda: self._encoded(prompts, completions),
            chain(prompts, [[Message("assistant", text) for text in completions]]),
        )
        worker = self._running()  # still: it may have been closed in the meantime
        if not sequences:
            return []
        loop = asyncio.get_running_loop()
        call = _Call(sequences, loop.create_future())
        self._waiting.append(call)
        if self._busy is None:
            self._busy = asyncio.create_task(self._work(worker))
        scores = await call.answer
        for index, sequence in enumerate(sequences):
            if not math.isfinite(scores[sequence]):
                raise ScoringError(
                    f"reward model {self.name} gave {scores[sequence]} for completion {index}"
                )
        return [scores[sequence] for sequence in sequences]

    async def close(self) -> None:
        """End the worker thread and let go of the weights; waiting calls fail."""
        worker, self._worker = self._worker, None
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if not call.answer.done():
                call.answer.set_exception(ScoringError(f"scorer {self.name} was closed"))
        if self._busy is not None:
            await self._busy
        if worker is not None:
            await asyncio.to_thread(worker.shutdown)
        self._model = None

    def _running(self) -> ThreadPoolExecutor:
        if self._worker is None or self._model is None:
            raise ScoringError(f"scorer {self.name} is not running: await start()")
        return self._worker

    def _load(self) -> None:
        path = self._config.path
        check_folder(path)
        self._tokenizer = load_tokenizer(path)
        model = load_pretrained(
            AutoModelForSequenceClassification,
            path,
            self._config.dtype,
            self._config.device,
            "a reward model (sequence classifier)",
        )
        if model.config.num_labels != 1:
            raise ModelLoadError(
                f"the classifier in {path} has {model.config.num_labels} labels; a reward model "
                "has one: set num_labels to 1 and train it, or use a function scorer"
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._max_tokens = min(self._config.max_tokens, positions or self._config.max_tokens)
        self._identity = model_and_tokenizer_digest(path)
        self._model = model

    def _encoded(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[_Tokens]:
        """Each pair as the reward model reads it."""
        encoded: list[_Tokens] = []
        for index, (prompt, answer) in enumerate(zip(prompts, completions, strict=True)):
            try:
                text = render_text(self._tokenizer, prompt, answer=answer)
            except InvalidRequestError as error:
                raise ScoringError(f"reward model {self.name}: {error}") from error
            tokens = tuple(encode_rendered(self._tokenizer, text))
            if len(tokens) > self._max_tokens:
                raise ScoringError(
                    f"completion {index} with its conversation has {len(tokens)} tokens for reward "
                    f"model {self.name}, which takes {self._max_tokens}: ask for shorter answers "
                    "or raise scorer.max_tokens, if the model allows"
                )
            encoded.append(tokens)
        return encoded

    async def _work(self, worker: ThreadPoolExecutor) -> None:
        """Score what is waiting, together, until nothing is."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            calls, self._waiting = self._waiting, []
            unique = list(dict.fromkeys(s for call in calls for s in call.sequences))
            outcome: dict[_Tokens, float] | Exception
            try:
                outcome = await loop.run_in_executor(worker, self._scores, unique)
            except Exception as error:  # any failure of the model is the callers' to hear of
                outcome = ScoringError(f"reward model {self.name} failed: {error!r}")
                outcome.__cause__ = error
            for call in calls:
                if call.answer.done():  # its caller was cancelled
                    continue
                if isinstance(outcome, Exception):
                    call.answer.set_exception(outcome)
                else:
                    call.answer.set_result(outcome)
        self._busy = None

    def _scores(self, sequences: list[_Tokens]) -> dict[_Tokens, float]:
        """Raw logits, in batches of similar length."""
        model = self._model
        if model is None:
            raise ScoringError(f"scorer {self.name} is closed")
        pad: int | None = model.config.get_text_config().pad_token_id
        # Without a padding token a classifier reads the last column, so nothing may be padded.
        size = 1 if pad is None else self._config.batch_size
        ordered = sorted(sequences, key=len)
        scores: dict[_Tokens, float] = {}
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            scores.update(zip(batch, _forward(model, batch, pad or 0), strict=True))
        return scores


def _forward(model: PreTrainedModel, batch: list[_Tokens], pad: int) -> list[float]:
    """One pass over right-padded sequences."""
    length = max(map(len, batch))
    tokens = torch.tensor([[*s, *[pad] * (length - len(s))] for s in batch], device=model.device)
    lengths = torch.tensor([len(s) for s in batch], device=model.device)
    mask = (torch.arange(length, device=model.device) < lengths[:, None]).long()
    with torch.inference_mode():
        return model(input_ids=tokens, attention_mask=mask).logits[:, 0].float().tolist()
