"""A request to the decode loop and the candidates that it is made of."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bond_core.engines.local.weights import PolicyWeights
from bond_core.engines.text import IncrementalText
from bond_core.types import Completion, FinishReason, SamplingParams, TextDelta, TokenDetail

Prompt = list[tuple[Tensor, Tensor]]
"""A prompt's keys and values per layer, each `[heads, tokens, size]`."""


@dataclass(slots=True, eq=False)
class GenerateRequest:
    """n candidates of one prompt. Owned by the decode thread once submitted.

    `done` and `failed` are called once, from the decode thread; `piece` with each piece of text of
    a streamed answer. A cancelled request gets no further call.
    """

    weights: PolicyWeights
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    n: int
    room: int
    """Most tokens that a candidate may have."""
    done: Callable[[tuple[Completion, ...]], None]
    failed: Callable[[Exception], None]
    piece: Callable[[TextDelta], None] | None = None
    cancelled: bool = False
    """Set by the decode thread when it has taken note; checked before each step."""
    completions: dict[int, Completion] = field(default_factory=dict[int, Completion])
    drawn: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Tokens so far of each candidate that has been given a row, by index."""
    started: int = 0
    """Candidates that have been given a row."""
    prompt: Prompt | None = None
    """The prefill, kept until the last candidate has started."""
    first_logits: Tensor | None = None
    """Logits `[vocabulary]` of each candidate's first token; kept as long as `prompt`."""

    def unfinished(self, ended: Collection[int]) -> dict[int, int]:
        """Tokens of the candidates that are not among those that have ended; may be asked from
        any thread."""
        drawn = list(self.drawn.items())
        return {index: len(tokens) for index, tokens in drawn if index not in ended}


@dataclass(slots=True, eq=False)
class Row:
    """One candidate being drawn."""

    request: GenerateRequest
    index: int
    adjustment: Tensor | None
    """Bias minus penalties `[vocabulary]`, added to the logits; None adds nothing."""
    uniforms: list[float] | None
    """A seeded row's noise, one number in [0, 1) per token; None shares the engine's."""
    text: IncrementalText | None
    """Kept only where text is needed before the end: stop strings and streams."""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    details: list[TokenDetail] = field(default_factory=list[TokenDetail])
    shown: int = 0
    """Details that have gone out with pieces of text."""
    spoken: bool = False
    """Whether a piece of text has gone out, and with it the prompt's tokens."""

    @property
    def position(self) -> int:
        """Where the newest token is written when it goes through the model."""
        return len(self.request.prompt_token_ids) + len(self.token_ids) - 1

    def penalise(self, token_id: int) -> None:
        """Lower the adjustment of a token that was drawn."""
        params = self.request.params
        if self.adjustment is None or not (params.presence_penalty or params.frequency_penalty):
            return
        first = self.token_ids.count(token_id) == 1
        self.adjustment[token_id] -= params.frequency_penalty + (
            params.presence_penalty if first else 0.0
        )

    def completion(self, text: str, finish_reason: FinishReason) -> Completion:
        """The finished candidate."""
        return Completion(
            text, tuple(self.token_ids), tuple(self.logprobs), finish_reason, tuple(self.details)
        )

    def show(self, text: str) -> None:
        """Hand out a piece of a streamed answer, with the details of the tokens since the last."""
        if self.request.piece is not None:
            prompt = () if self.spoken else self.request.prompt_token_ids
            details = tuple(self.details[self.shown :])
            self.request.piece(
                TextDelta(text, None, prompt, details, num_tokens=len(self.token_ids))
            )
            self.shown, self.spoken = len(self.details), True


def initial_adjustment(
    params: SamplingParams, vocab_size: int, device: torch.device
) -> Tensor | None:
    """What to add to the logits of a row's first token, float32 `[vocabulary]`; None if nothing
    will ever be added."""
    if not (params.logit_bias or params.presence_penalty or params.frequency_penalty):
        return None
    adjustment = torch.zeros(vocab_size, device=device)
    for token, bias in params.logit_bias.items():
        adjustment[token] = bias
    return adjustment


def seeded_uniforms(seed: int, index: int, count: int) -> list[float]:
    """Noise of candidate `index`: `count` doubles in [0, 1) that depend on nothing else.

    The two numbers are hashed together, because generators seeded by neighbouring numbers, or by
    their sum, would give related or equal streams to different candidates.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, dtype=torch.float64, generator=generator).tolist()
