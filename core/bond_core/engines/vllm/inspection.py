"""What a server is and can do, found out before it gets requests."""

import math
import re
from dataclasses import dataclass
from typing import Any

from bond_core.engines.base import EngineInfo
from bond_core.engines.vllm import answers, wire
from bond_core.engines.vllm.connection import NOT_FOUND, UNAUTHORISED, AwayError, RefusedError
from bond_core.engines.vllm.releases import why_unsafe
from bond_core.engines.vllm.replica import Replica, ServedModel
from bond_core.errors import BondError, ModelLoadError
from bond_core.types import Message, SamplingParams

TRIAL = (Message("user", "Hello, is anybody there?"),)
_EPSILON = 1e-5
_MAX_LORA = re.compile(r'vllm:lora_requests_info\{[^}]*max_lora="(\d+)"')


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one server can do."""

    model: ServedModel
    priorities: bool
    """Whether requests may have one: `--scheduling-policy priority`."""
    processed_logprobs: bool
    """Whether log-probabilities are those of the law that was drawn from."""
    max_loras: int | None
    """Adapters in one batch; None where adapters are off or the server does not say."""


async def inspect(replica: Replica, wanted: str, timeout_s: float) -> Abilities:
    """Ask and try. Raises `ModelLoadError` naming the server, the cause and the remedy."""
    try:
        model = await replica.model(wanted, timeout_s)
        priorities = await _takes_priorities(replica, model.name)
        processed = await _gives_processed_logprobs(replica, model.name)
        max_loras = await _max_loras(replica, timeout_s)
    except RefusedError as error:
        if error.status in UNAUTHORISED:
            raise ModelLoadError(
                f"vLLM at {replica.url} refuses the key: set engine.api_key (or the variable "
                "BOND_ENGINE__API_KEY) to what it was started with as --api-key"
            ) from error
        hint = (
            ": it does not answer /v1/chat/completions; a reward model's server belongs into the "
            "scorer's section"
            if error.status == NOT_FOUND
            else ""
        )
        told = f"vLLM at {replica.url} refuses a trial request ({{}}){hint}"
        raise ModelLoadError(told.format(error), told.format(error.loggable)) from error
    except AwayError as error:
        told = (
            f"no vLLM server answers at {replica.url} ({{}}): start one (`bond vllm` prints the "
            "command), or correct engine.urls"
        )
        raise ModelLoadError(told.format(error), told.format(error.loggable)) from error
    except ModelLoadError:
        raise
    except BondError as error:
        raise ModelLoadError(error.message, error.loggable) from error
    return Abilities(model, priorities, processed, max_loras)


async def _max_loras(replica: Replica, timeout_s: float) -> int | None:
    try:
        text = str(await replica.connection.get("/metrics", timeout_s=timeout_s))
    except (RefusedError, AwayError):  # a proxy may not let it through
        return None
    found = _MAX_LORA.search(text)
    return int(found[1]) if found else None


async def _takes_priorities(replica: Replica, model: str) -> bool:
    try:
        await _try(replica, model, SamplingParams(max_tokens=1), priority=1)
    except RefusedError as error:
        if "priority" in str(error).lower():
            return False
        raise
    return True


async def _gives_processed_logprobs(replica: Replica, model: str) -> bool:
    """With top-k 1 the law is a point, whose log-probability is 0 and not the model's own; or it is
    uniform over tokens that are equal, which in bfloat16 are not rare."""
    params = SamplingParams(max_tokens=8, temperature=2.0, top_k=1, seed=0)
    answer = await _try(replica, model, params, priority=0)
    [completion] = answers.generation(answer, params, 1).completions
    return all(is_of_equals(logprob) for logprob in completion.logprobs)


def is_of_equals(logprob: float) -> bool:
    """Whether it is that of one of k tokens of the same probability, -log k, for a whole k."""
    number = math.exp(-logprob)
    return math.isclose(number, round(number), rel_tol=_EPSILON)


async def _try(replica: Replica, model: str, params: SamplingParams, *, priority: int) -> Any:
    route, body = wire.request(model, TRIAL, params, 1, priority=priority)
    return await replica.connection.post(route, body)


def why_no_adapters(abilities: Abilities, max_adapters: int) -> str:
    """Why this server cannot serve versions; empty if it may."""
    unsafe = why_unsafe(abilities.model.vllm_version)
    if unsafe:
        return unsafe
    if abilities.max_loras is not None and abilities.max_loras < max_adapters + 1:
        return (
            f"vLLM was started with --max-loras {abilities.max_loras}; engine.max_adapters "
            f"{max_adapters} and the reference need {max_adapters + 1} at least"
        )
    return ""


def why_unlike(
    abilities: Abilities, base_name: str, info: EngineInfo, priorities: bool, max_adapters: int
) -> str:
    """Why a server cannot join others that are served as `info` says; empty if it may."""
    model = abilities.model
    if model.name != base_name:
        return f"it serves {model.name}, and the others {base_name}"
    if model.max_model_len < info.max_context_tokens:
        return (
            f"it takes {model.max_model_len} tokens, and the others {info.max_context_tokens}: "
            "start it with the same --max-model-len"
        )
    if priorities and not abilities.priorities:
        return "it takes no priorities as the others do: start it with --scheduling-policy priority"
    return why_no_adapters(abilities, max_adapters) if info.adapters else ""
