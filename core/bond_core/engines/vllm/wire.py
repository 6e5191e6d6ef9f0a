"""What is sent to a vLLM server, and the numbers read from it, without any input or output.

Every sampling parameter is sent, always: what a request leaves out, vLLM may take from the
`generation_config.json` of the model's folder.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bond_core.engines.base import CHAT_FIELDS
from bond_core.engines.limits import MIN_TEMPERATURE
from bond_core.errors import EngineUnavailableError
from bond_core.types import Conversation, SamplingParams, raw_prompt

CHAT_PATH = "/v1/chat/completions"
TEXT_PATH = "/v1/completions"

JsonObject = Mapping[str, Any]
FIELDS = frozenset(
    {
        "allowed_token_ids", "bad_words", "cache_salt", "ignore_eos", "include_stop_str_in_output",
        "length_penalty", "min_p", "min_tokens", "repetition_detection", "repetition_penalty",
        "response_format", "skip_special_tokens", "spaces_between_special_tokens",
        "stop_token_ids", "structured_outputs", "thinking_token_budget", "truncate_prompt_tokens",
        "truncation_side", "vllm_xargs",
    }
) | CHAT_FIELDS  # fmt: skip
"""What requests may hand to vLLM beyond the parameters that every engine takes. Left out is what
changes whom the answer is for, how it is read, or how it is drawn (beams are no samples)."""


def request(
    model: str, prompt: Conversation, params: SamplingParams, n: int, *, priority: int
) -> tuple[str, dict[str, Any]]:
    """The route that answers a prompt, and the body to send.

    Greedy answers are one answer, and vLLM refuses to draw it twice. A seed is hashed, because
    vLLM gives candidate i the stream of seed + i, and two requests with neighbouring seeds would
    share candidates.
    """
    greedy = params.temperature < MIN_TEMPERATURE
    body: dict[str, Any] = {
        "model": model,
        "n": 1 if greedy else n,
        "max_tokens": params.max_tokens,
        "min_tokens": 0,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": 0.0,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": 1.0,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()},
        "stop": list(params.stop),
        "stop_token_ids": [],
        "include_stop_str_in_output": False,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "return_token_ids": True,
    }
    if params.seed is not None:
        body["seed"] = stream_seed(params.seed)
    if priority:
        body["priority"] = priority
    text, top_logprobs = raw_prompt(prompt), params.top_logprobs or 0
    if text is not None:
        body |= {"prompt": text, "add_special_tokens": True, "logprobs": top_logprobs}
    else:
        body |= {
            "messages": [message.as_dict() for message in prompt],
            "add_generation_prompt": True,
            "logprobs": True,
            "top_logprobs": top_logprobs,
        }
    return CHAT_PATH if text is None else TEXT_PATH, body | dict(params.further)


def stream_seed(seed: int) -> int:
    """A seed of 62 bits whose neighbours belong to no other request's seed."""
    digest = hashlib.sha256(f"bondserve candidate stream {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def scoring_body(
    model: str, sequences: Sequence[Sequence[int]], temperature: float, *, priority: int
) -> dict[str, Any]:
    """The body of `/v1/completions` that asks for the log-probabilities of given tokens.

    vLLM gives them at temperature 1; at another one the whole vocabulary's are needed. The one
    token that has to be drawn as well is thrown away.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": [list(sequence) for sequence in sequences],
        "prompt_logprobs": 0 if temperature == 1 else -1,
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "add_special_tokens": False,
    }
    if priority:
        body["priority"] = priority
    return body


def token_logprobs(
    answer: JsonObject, sequences: Sequence[Sequence[int]], num_prompt: int, temperature: float
) -> list[tuple[float, ...]]:
    """Of each sequence, the log-probabilities of its tokens from `num_prompt` on.

    Raises `EngineUnavailableError` if the answer does not hold them.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [
            tuple(
                _at_temperature(entries[t], sequence[t], temperature)
                for t in range(num_prompt, len(sequence))
            )
            for entries, sequence in zip(
                (choice["prompt_logprobs"] for choice in choices), sequences, strict=True
            )
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise unreadable(error) from error


def _at_temperature(entry: JsonObject, token: int, temperature: float) -> float:
    """log softmax(logits / T) of a token, from log-probabilities at temperature 1."""
    own = float(entry[str(token)]["logprob"])
    if not math.isfinite(own):
        raise ValueError("a log-probability is not finite")
    if temperature == 1:
        return own
    scaled = [float(item["logprob"]) / temperature for item in entry.values()]
    top = max(scaled)
    return own / temperature - top - math.log(sum(math.exp(value - top) for value in scaled))


def error_message(body: object) -> str:
    """The message of an error answer in any of the forms that servers give it."""
    if not isinstance(body, dict):
        return ""
    error = cast(dict[str, Any], body).get("error", body)
    if isinstance(error, dict):
        found = cast(dict[str, Any], error)
        return str(found.get("message") or found.get("detail") or "")
    return str(error)


def error_param(body: object) -> str | None:
    """The parameter that an error answer names, if it does."""
    if isinstance(body, dict):
        error = cast(dict[str, Any], body).get("error")
        if isinstance(error, dict):
            param = cast(dict[str, Any], error).get("param")
            return None if param is None else str(param)
    return None


def unreadable(error: Exception) -> EngineUnavailableError:
    """The error of an answer that is not what was asked for."""
    remedy = "is the URL that of a vLLM server of a supported version?"
    kind = type(error).__name__
    return EngineUnavailableError(
        f"vLLM's answer cannot be read ({kind}: {error}): {remedy}",
        f"vLLM's answer cannot be read ({kind}): {remedy}",
    )
