"""What every engine refuses, in the same words: sampling values out of range, too long prompts."""

import math

from bond_core.errors import InvalidRequestError, PromptTooLongError
from bond_core.types import SamplingParams

MIN_TEMPERATURE = 0.01
"""The least positive temperature: vLLM takes any smaller one for this."""
MAX_PENALTY = 2.0
"""Penalties go from -2 to 2, as in OpenAI's dialect and in vLLM."""
MAX_BIAS = 100.0
"""Biases go from -100 to 100, as in OpenAI's dialect; vLLM cuts larger ones in silence."""


MAX_TOP_LOGPROBS = 20
"""Alternatives told with each token, as in OpenAI's dialect."""


def check_sampling(
    params: SamplingParams, n: int, vocab_size: int, fields: frozenset[str] = frozenset()
) -> None:
    """Raise `InvalidRequestError` naming the first parameter that is out of range.

    `fields` are the engine's own, as it publishes them.
    """
    for name in params.further:
        if name not in fields:
            raise InvalidRequestError(f"this engine does not take {name}", param=name)
    if params.top_logprobs is not None and not 0 <= params.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs is {params.top_logprobs}; it must be from 0 to {MAX_TOP_LOGPROBS}",
            param="top_logprobs",
        )
    if n < 1:
        raise InvalidRequestError(f"n is {n}; ask for at least one completion", param="n")
    if params.max_tokens < 1:
        raise InvalidRequestError(
            f"max_tokens is {params.max_tokens}; it must be at least 1", param="max_tokens"
        )
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise InvalidRequestError(
            f"temperature is {params.temperature}; it must be 0 (greedy) or positive",
            param="temperature",
        )
    if 0 < params.temperature < MIN_TEMPERATURE:
        raise InvalidRequestError(
            f"temperature is {params.temperature}; the least positive one is {MIN_TEMPERATURE:g}, "
            "and 0 is greedy",
            param="temperature",
        )
    if not 0 < params.top_p <= 1:
        raise InvalidRequestError(
            f"top_p is {params.top_p}; it must be over 0 and at most 1", param="top_p"
        )
    if params.top_k < 0:
        raise InvalidRequestError(
            f"top_k is {params.top_k}; it must be positive, or 0 for the whole vocabulary",
            param="top_k",
        )
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, name)
        if not -MAX_PENALTY <= value <= MAX_PENALTY:
            raise InvalidRequestError(
                f"{name} is {value}; it must be from -{MAX_PENALTY:g} to {MAX_PENALTY:g}",
                param=name,
            )
    for token, bias in params.logit_bias.items():
        if not 0 <= token < vocab_size or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequestError(
                f"logit_bias has token {token} with bias {bias}; tokens go from 0 to "
                f"{vocab_size - 1} and biases from -{MAX_BIAS:g} to {MAX_BIAS:g}",
                param="logit_bias",
            )
    if "" in params.stop:
        raise InvalidRequestError("stop has an empty string, which never matches", param="stop")


def check_scoring_temperature(temperature: float) -> None:
    """Raise `InvalidRequestError` if log-probabilities cannot be given at a temperature."""
    if not (math.isfinite(temperature) and temperature >= MIN_TEMPERATURE):
        raise InvalidRequestError(
            f"temperature is {temperature}; log-probabilities need one of at least "
            f"{MIN_TEMPERATURE:g}",
            param="temperature",
        )


def room_for_answer(prompt_tokens: int, max_context_tokens: int, max_tokens: int) -> int:
    """Tokens that an answer may have: `max_tokens`, or what the context leaves.

    Raises `PromptTooLongError` if not even one token fits.
    """
    room = max_context_tokens - prompt_tokens
    if room < 1:
        raise PromptTooLongError(
            f"the prompt has {prompt_tokens} tokens and the context {max_context_tokens}, answer "
            f"included: shorten the messages to at most {max_context_tokens - 1} tokens"
        )
    return min(max_tokens, room)
