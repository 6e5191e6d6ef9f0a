"""What happens before the first request: the servers, the reference, the numeric noise."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from bond_core.config import ModelConfig, VllmEngineConfig
from bond_core.engines.vllm import answers, wire
from bond_core.engines.vllm.adapters import Adapter, AdapterFanOut
from bond_core.engines.vllm.connection import RefusedError
from bond_core.engines.vllm.fleet import Fleet
from bond_core.engines.vllm.inspection import TRIAL, Abilities, inspect, why_no_adapters
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import AdapterError, BondError, EngineUnavailableError, ModelLoadError
from bond_core.fingerprints import model_digest
from bond_core.types import Conversation, Generation, Message, SamplingParams

logger = logging.getLogger(__name__)

NO_FOLDER = (
    "model.path names no folder, and adapters are trained and checked with the model's own files: "
    "name the folder that vLLM serves"
)
NOISE_SAMPLES = 8
LEAST_NOISE_NATS = 1e-6
_CONVERSATIONS: tuple[Conversation, ...] = (
    (Message("user", "Is 1 < 2?\n\tYes: “it is”, naïvely."),),
    (Message("user", "Really?"), Message("assistant", "No."), Message("user", "Thanks!  ")),
)
"""Rendered here and by the servers: line breaks, characters of several bytes, turns, spaces."""


async def open_replicas(fleet: Fleet, config: VllmEngineConfig) -> list[Abilities]:
    """Inspect and admit every server that answers; one that does not joins when it does.

    Raises `ModelLoadError` if none answers, or if they serve different models.
    """
    found = await asyncio.gather(
        *(inspect(r, config.model_name, config.health_timeout_s) for r in fleet.replicas),
        return_exceptions=True,
    )
    abilities = [outcome for outcome in found if isinstance(outcome, Abilities)]
    # what ends the start is told by whoever catches it, and not by the log too
    raised = None if abilities else next(error for error in found if isinstance(error, BondError))
    for replica, outcome in zip(fleet.replicas, found, strict=True):
        if isinstance(outcome, Abilities):
            replica.admit()
        elif not isinstance(outcome, BondError):
            raise outcome
        elif outcome is not raised:
            # nothing but the trial was sent, so the server's words are about that
            replica.exclude(outcome.loggable, said=outcome.message)
    if raised is not None:
        raise raised
    names = sorted({ability.model.name for ability in abilities})
    if len(names) > 1:
        raise ModelLoadError(f"the servers of engine.urls serve different models: {names}")
    return abilities


def say_what_is_less(abilities: Sequence[Abilities], shared_by_trainer: bool) -> None:
    """Log what works less well than it could, and the flag that mends it."""
    if not all(ability.processed_logprobs for ability in abilities):
        logger.warning(
            "vLLM gives log-probabilities before temperature, truncation and penalties: those of "
            "answers at other settings than temperature 1 are not of the law that they were drawn "
            "from; start it with --logprobs-mode processed_logprobs"
        )
    if shared_by_trainer and not all(ability.priorities for ability in abilities):
        logger.warning(
            "vLLM takes no priorities, so training slows serving down: start it with "
            "--scheduling-policy priority, or name servers for training in engine.training_urls"
        )


async def open_reference(
    fan_out: AdapterFanOut,
    abilities: Sequence[Abilities],
    max_adapters: int,
    zero_adapter: Callable[[], Adapter],
) -> Adapter | str:
    """Load the adapter of zeros on every server; or why no adapters can be.

    It is loaded under a name of its own first: one that is there already, of an earlier start,
    would not show whether the server sees the directory now. Raises `ModelLoadError` naming the
    server that does not.
    """
    for ability in abilities:
        if because := why_no_adapters(ability, max_adapters):
            return because
    zero = await asyncio.to_thread(zero_adapter)
    trial = replace(zero, name=f"{zero.name}-trial-{uuid4().hex[:12]}")
    try:
        await fan_out.load(trial)
        await fan_out.unload(trial)
        await fan_out.load(zero)
    except AdapterError as error:
        if "does not see" in error.message:
            raise ModelLoadError(error.message) from error
        logger.warning("no adapters: %s", error.message)
        return (
            "vLLM does not take adapters: start it with --enable-lora and the variable "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (`bond vllm` prints the whole command)"
        )
    return zero


def refuse_other_weights(abilities: Sequence[Abilities], model: Path) -> None:
    """Raise `ModelLoadError` if a server says that it serves a folder of this machine whose files
    are not those of `model`. Of a folder elsewhere nothing can be said."""
    for ability in abilities:
        root = Path(ability.model.root)
        if not ability.model.root or not root.is_dir() or root.resolve() == model.resolve():
            continue
        if model_digest(root) != model_digest(model):
            raise ModelLoadError(
                f"vLLM serves {root}, whose weights or configuration are not those of {model}: "
                "name the folder that it serves"
            )


async def folder_identity(
    model: ModelConfig, prompt_tokens: Callable[[Conversation], Awaitable[list[int]]]
) -> dict[str, str]:
    """Digests of the folder's weights and tokenizer for `EngineInfo`; empty without a folder."""
    if model.path is None:
        return {"tokenizer_sha256": "", "base_revision": ""}
    return {
        "tokenizer_sha256": await _shared_tokenizer_sha256(model.folder, prompt_tokens),
        "base_revision": await asyncio.to_thread(model_digest, model.folder),
    }


async def _shared_tokenizer_sha256(
    model: Path, prompt_tokens: Callable[[Conversation], Awaitable[list[int]]]
) -> str:
    """The digest of the folder's tokenizer and chat template, once the servers are seen to render
    conversations as it does. Raises `ModelLoadError` if they do not."""
    from bond_core.engines.rendering import render_prompt, tokenizer_sha256
    from bond_core.tokenizing import load_tokenizer

    tokenizer = await asyncio.to_thread(load_tokenizer, model)
    for conversation in _CONVERSATIONS:
        if await prompt_tokens(conversation) != render_prompt(tokenizer, conversation):
            raise ModelLoadError(
                f"vLLM renders conversations otherwise than the tokenizer and chat template in "
                f"{model}: model.path has to be the folder that vLLM serves"
            )
    return tokenizer_sha256(tokenizer)


async def measured_noise(fleet: Fleet, name: str) -> float:
    """Largest difference, nats per answer, between an answer's log-probability as it was drawn
    among others, and as it is scored afterwards."""
    params = SamplingParams(max_tokens=32, seed=0)

    async def draw(replica: Replica) -> Generation:
        route, body = wire.request(name, TRIAL, params, NOISE_SAMPLES, priority=0)
        answer = await replica.connection.post(route, body)
        return answers.generation(answer, params, NOISE_SAMPLES)

    try:
        drawn = await fleet.call("", NOISE_SAMPLES, draw)
        num_prompt = len(drawn.prompt_token_ids)
        sequences = [[*drawn.prompt_token_ids, *c.token_ids] for c in drawn.completions]

        async def score(replica: Replica) -> list[tuple[float, ...]]:
            return await replica.token_logprobs(name, sequences, num_prompt, 1.0, priority=0)

        found = await fleet.call("", NOISE_SAMPLES, score)
    except RefusedError as error:
        refused = "vLLM refuses a trial request: "
        raise EngineUnavailableError(refused + str(error), refused + error.loggable) from error
    pairs = zip(drawn.completions, found, strict=True)
    return max(LEAST_NOISE_NATS, *(abs(c.logprob - sum(values)) for c, values in pairs))


def vocab_size_of(model: Path) -> int | None:
    """Tokens of the vocabulary, by the folder's configuration."""
    config = json.loads((model / "config.json").read_text())
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return None if size is None else int(size)
