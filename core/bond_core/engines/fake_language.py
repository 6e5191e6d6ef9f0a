"""The fake engine's tokens and their law, in plain Python.

Tokens 0 to 255 are bytes, which prompts are made of; 256 ends an answer; the rest are the words
that answers are made of.
"""

import bisect
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bond_core.errors import InvalidRequestError
from bond_core.types import Conversation, Message, SamplingParams, raw_prompt

_TEXT = """your order has been sent today and will arrive soon please wait for the parcel we are
sorry about this delay you can return it at any time thank . , ! ?"""
_WORDS = tuple(_TEXT.split())
END_TOKEN = 256
VOCAB_SIZE = END_TOKEN + 1 + len(_WORDS)

_BYTE_LOGIT = -20.0
"""Bytes are possible in answers, which bias can show, but all but never drawn."""


class FakeTokenizer:
    """Bytes and words. `decode` takes the arguments of transformers' tokenizers."""

    def render(self, conversation: Conversation) -> tuple[int, ...]:
        """The prompt: one line per message, then the assistant's name."""
        if not conversation:
            raise InvalidRequestError(
                "messages is empty: send at least one message", param="messages"
            )
        if (text := raw_prompt(conversation)) is not None:
            if not text:
                raise InvalidRequestError("prompt is empty: send some text", param="prompt")
            return tuple(text.encode())
        lines = [f"{_line(message)}\n" for message in conversation]
        return tuple(("".join(lines) + "assistant: ").encode())

    def decode(self, token_ids: Sequence[int], **_: object) -> str:
        """Text; the end token has none."""
        parts = [
            bytes([token]) if token < END_TOKEN else f"{_WORDS[token - END_TOKEN - 1]} ".encode()
            for token in token_ids
            if token != END_TOKEN
        ]
        return b"".join(parts).decode(errors="replace")


def _line(message: Message) -> str:
    calls = "".join(f" [{call.name}({call.arguments})]" for call in message.tool_calls)
    thought = f"({message.reasoning}) " if message.reasoning else ""
    return f"{message.role}: {thought}{message.content}{calls}"


def prompt_key(prompt_token_ids: Sequence[int], further: Mapping[str, Any] | None = None) -> bytes:
    """What a prompt's laws are made from: further fields of a request change them too."""
    key = ",".join(map(str, prompt_token_ids))
    if further:
        key += json.dumps(further, sort_keys=True)
    return hashlib.sha256(key.encode()).digest()


def base_logits(version: str, prompt: bytes, position: int) -> list[float]:
    """Logits of the token at a position of the answer; the end grows likelier with length.

    `prompt` is its `prompt_key`.
    """
    digest = hashlib.shake_256(b"%b/%b/%d" % (version.encode(), prompt, position))
    words = [byte / 64 for byte in digest.digest(len(_WORDS))]
    return [*[_BYTE_LOGIT] * END_TOKEN, position / 2 - 3, *words]


@functools.lru_cache(maxsize=4096)
def plain_law(
    version: str, prompt: bytes, position: int, temperature: float, top_k: int, top_p: float
) -> "Law":
    """The law of a position without bias and penalties: every candidate's, so it is kept."""
    return Law.of(base_logits(version, prompt, position), temperature, top_k, top_p)


@dataclass(frozen=True, slots=True)
class Law:
    """A distribution over tokens: log-probabilities, and their probabilities summed up."""

    logprobs: tuple[float, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, logits: Sequence[float], temperature: float, top_k: int, top_p: float) -> "Law":
        """Of logits, at a positive temperature, truncated."""
        logprobs = truncated([x / temperature for x in logits], top_k, top_p)
        return cls(tuple(logprobs), tuple(itertools.accumulate(map(math.exp, logprobs))))

    def draw(self, uniform: float) -> tuple[int, float]:
        """The token that a number in [0, 1) falls on, and its log-probability."""
        token = bisect.bisect_right(self.cumulative, uniform * self.cumulative[-1])
        token = min(token, len(self.logprobs) - 1)
        return token, self.logprobs[token]

    def best(self) -> tuple[int, float]:
        """The likeliest token, and its log-probability."""
        token = max(range(len(self.logprobs)), key=self.logprobs.__getitem__)
        return token, self.logprobs[token]

    def top(self, count: int) -> list[int]:
        """The likeliest tokens that can be drawn at all, likeliest first."""
        order = sorted(range(len(self.logprobs)), key=lambda token: -self.logprobs[token])
        return [token for token in order[:count] if math.isfinite(self.logprobs[token])]


def adjusted(
    logits: Sequence[float], params: SamplingParams, token_ids: Sequence[int]
) -> list[float]:
    """Logits with bias added and penalties for the tokens drawn so far taken off."""
    result = list(logits)
    for token, bias in params.logit_bias.items():
        result[token] += bias
    if params.presence_penalty or params.frequency_penalty:
        for token in set(token_ids):
            result[token] -= params.presence_penalty
            result[token] -= params.frequency_penalty * token_ids.count(token)
    return result


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Natural log-probabilities."""
    highest = max(logits)
    total = math.log(math.fsum(math.exp(x - highest) for x in logits)) + highest
    return [x - total for x in logits]


def truncated(logits: Sequence[float], top_k: int, top_p: float) -> list[float]:
    """Log-probabilities after keeping the k most likely tokens, and of those the smallest set
    whose mass reaches top_p."""
    if not top_k and top_p == 1:
        return log_softmax(logits)
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    law = log_softmax([logits[token] for token in order])
    mass = 0.0
    kept = 0
    for logprob in law:
        if kept and mass >= top_p:
            break
        mass += math.exp(logprob)
        kept += 1
    result = [-math.inf] * len(logits)
    for token, logprob in zip(order, log_softmax(law[:kept]), strict=False):
        result[token] = logprob
    return result
