"""What is sent to a vLLM server and read from it, without any input or output.

Every sampling parameter is sent, always: what a request leaves out, vLLM may take from the
`generation_config.json` of the model's folder.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bond_core.engines.limits import MIN_TEMPERATURE
from bond_core.errors import EngineUnavailableError
from bond_core.types import Completion, Conversation, FinishReason, Generation, SamplingParams

_FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
JsonObject = Mapping[str, Any]


def chat_body(
    model: str, prompt: Conversation, params: SamplingParams, n: int, *, priority: int
) -> dict[str, Any]:
    """The body of `/v1/chat/completions`.

    Greedy answers are one answer, and vLLM refuses to draw it twice. A seed is hashed, because
    vLLM gives candidate i the stream of seed + i, and two requests with neighbouring seeds would
    share candidates.
    """
    greedy = params.temperature < MIN_TEMPERATURE
    body: dict[str, Any] = {
        "model": model,
        "messages": [message.as_dict() for message in prompt],
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
        "add_generation_prompt": True,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
    }
    if params.seed is not None:
        body["seed"] = stream_seed(params.seed)
    if priority:
        body["priority"] = priority
    return body


def stream_seed(seed: int) -> int:
    """A seed of 62 bits whose neighbours belong to no other request's seed."""
    digest = hashlib.sha256(f"bondserve candidate stream {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def generation(answer: JsonObject, params: SamplingParams, n: int) -> Generation:
    """The completions of a chat answer, in the order of their index.

    Raises `EngineUnavailableError` if the answer is not what was asked for.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        completions = [_completion(choice, params) for choice in choices]
        prompt_token_ids = tuple(map(int, answer["prompt_token_ids"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from error
    if params.temperature < MIN_TEMPERATURE:
        completions *= n
    if len(completions) != n:
        raise EngineUnavailableError(
            f"vLLM returned {len(completions)} completions where {n} were asked for"
        )
    return Generation(prompt_token_ids, tuple(completions))


def _completion(choice: JsonObject, params: SamplingParams) -> Completion:
    logprobs = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
    return assembled(
        choice["message"]["content"] or "",
        [int(token) for token in choice["token_ids"]],
        logprobs,
        choice["finish_reason"],
        params,
    )


def assembled(
    text: str,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    finish_reason: str,
    params: SamplingParams,
) -> Completion:
    """A completion from its parts. Raises `ValueError` if they do not fit together."""
    if len(token_ids) != len(logprobs) or not token_ids:
        raise ValueError(f"{len(token_ids)} tokens and {len(logprobs)} log-probabilities")
    if not all(math.isfinite(value) for value in logprobs):
        raise ValueError("a log-probability is not finite")
    if finish_reason not in _FINISHED:
        raise ValueError(f"finish_reason {finish_reason!r}")
    if params.temperature < MIN_TEMPERATURE:  # the law of greedy decoding is a point
        logprobs = [0.0] * len(token_ids)
    return Completion(text, tuple(token_ids), tuple(logprobs), _FINISHED[finish_reason])


class StreamedAnswer:
    """The chunks of one streamed choice, put together.

    `push` takes one event's data and returns the text to show; `completion` is there once
    `finished` is.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._finish_reason: str | None = None
        self.prompt_token_ids: tuple[int, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the chunk that ends the answer has come."""
        return self._finish_reason is not None

    def push(self, data: str) -> str:
        """Raises `EngineUnavailableError` for what is no chunk, or reports an error."""
        try:
            chunk: Any = json.loads(data)
            if "error" in chunk:
                raise EngineUnavailableError(
                    f"vLLM broke off the answer: {error_message(chunk) or data[:200]}"
                )
            if chunk.get("prompt_token_ids"):
                self.prompt_token_ids = tuple(map(int, chunk["prompt_token_ids"]))
            text = ""
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                self._token_ids += [int(token) for token in choice.get("token_ids") or ()]
                logprobs: Any = choice.get("logprobs") or {}
                self._logprobs += [float(e["logprob"]) for e in logprobs.get("content") or ()]
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(error) from error
        self._text.append(text)
        return text

    def completion(self) -> Completion:
        """The whole answer. Raises `EngineUnavailableError` if the stream ended before it."""
        if self._finish_reason is None:
            raise EngineUnavailableError("the stream from vLLM broke off before its end")
        try:
            return assembled(
                "".join(self._text),
                self._token_ids,
                self._logprobs,
                self._finish_reason,
                self._params,
            )
        except ValueError as error:
            raise _unreadable(error) from error


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
        raise _unreadable(error) from error


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


def _unreadable(error: Exception) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"vLLM's answer cannot be read ({type(error).__name__}: {error}): is the URL that of a "
        "vLLM server of a supported version?"
    )
