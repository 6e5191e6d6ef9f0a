"""What a pooling scorer makes sure of before it is used: that its numbers are raw, and that they
are the numbers of the reward model that is meant."""

import asyncio
import hashlib
import json
import math
import secrets
from collections.abc import Sequence
from pathlib import Path

from bond_core.config import PoolingScorerConfig, SelfTestConfig
from bond_core.errors import ModelLoadError, ScoringError
from bond_core.fingerprints import model_and_tokenizer_digest
from bond_core.rewards.pooling.connected import Connected
from bond_core.rewards.pooling.rendering import Input
from bond_core.types import Message

_SAME = 0.01
"""Half precision moves a score by less than this between two requests."""
_DECIMALS = 3
"""Of the scores that count for the identity."""


async def made_sure(connected: Connected, config: PoolingScorerConfig) -> str:
    """Try the server with the self-test's conversations; returns the scorer's identity.

    Without a configured self-test the default one's are scored, but may come in any order. Raises
    `ModelLoadError`.
    """
    where = f"reward model {connected.model.id} at {config.url}"
    test = config.self_test or SelfTestConfig()
    prompt = Message("user", test.prompt)
    try:
        inputs = await connected.rendering.inputs([[prompt]] * 2, [test.good, test.bad])
        raw = await _one_by_one(connected, inputs, activation=False)
        activated = await _one_by_one(connected, inputs, activation=True)
        check_raw(where, raw, activated)
        served: object = [connected.model.id, connected.model.root]
        if config.path is not None:
            turns = [prompt.as_dict(), Message("assistant", test.good).as_dict()]
            theirs = await connected.server.tokens(connected.model.id, turns)
            check_rendering(where, config.path, inputs[0], theirs)
            served = await asyncio.to_thread(model_and_tokenizer_digest, config.path)
            await asyncio.to_thread(check_root, where, config.path, served, connected.model.root)
    except ScoringError as error:
        raise ModelLoadError(f"{where} cannot score the self-test: {error}") from error
    if config.self_test is not None:
        check_order(where, config.self_test, raw)
    rounded = [round(score, _DECIMALS) for score in raw]
    return hashlib.sha256(json.dumps([served, rounded]).encode()).hexdigest()


async def _one_by_one(
    connected: Connected, inputs: Sequence[Input], *, activation: bool
) -> list[float]:
    """Scores that come out equal at every start: nothing else in the request, and nothing from
    the prefix cache."""
    salt = secrets.token_hex(16)
    return [
        (await connected.scores([given], use_activation=activation, cache_salt=salt))[0]
        for given in inputs
    ]


def check_raw(where: str, raw: Sequence[float], activated: Sequence[float]) -> None:
    """Raise `ModelLoadError` if the scores may have gone through a sigmoid.

    `raw` and `activated` are those of the same conversations with `use_activation` false and true.
    A sigmoid has to lie between them; or there is none, for a model whose configuration names the
    identity, and then some score lies outside of what a probability can be.
    """
    pairs = list(zip(raw, activated, strict=True))
    unchanged = all(abs(r - a) < _SAME for r, a in pairs)
    squashed = all(abs(_sigmoid(r) - a) < _SAME for r, a in pairs)
    probabilities = all(0 <= r <= 1 for r in raw)
    if (squashed and not unchanged) or (unchanged and not probabilities):
        return
    raise ModelLoadError(
        f"{where} gives the scores {_numbers(raw)} with use_activation false and "
        f"{_numbers(activated)} with true, which are not the logits and their sigmoid: the server "
        "ignores the switch or applies a function of its own, and scores that went through a "
        "sigmoid tie at its ends; update vLLM, and leave --pooler-config to its defaults"
    )


def check_order(where: str, test: SelfTestConfig, raw: Sequence[float]) -> None:
    """Raise `ModelLoadError` unless the first score, of the good answer, is above the second."""
    good, bad = raw
    if good > bad:
        return
    raise ModelLoadError(
        f"{where} gives the good answer of the self-test {good:.4g} and the bad one {bad:.4g} "
        f"(to {test.prompt!r}): it is not the reward model that is meant, or its template or sign "
        "is wrong. If it is right, write into self_test of the scorer's section a prompt with a "
        "good and a bad answer that it does tell apart, or self_test: null to leave this out"
    )


def check_rendering(where: str, path: Path, ours: Input, theirs: Sequence[object]) -> None:
    """Raise `ModelLoadError` unless the server renders a conversation as the folder does."""
    if list(ours) == list(theirs):
        return
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    first = differ[0] if differ else min(len(ours), len(theirs))
    raise ModelLoadError(
        f"{where} renders a conversation as {len(theirs)} tokens and the folder {path} as "
        f"{len(ours)}, different from token {first} on: it serves another model or chat template; "
        "correct path, or leave it out and the server's template is used"
    )


def check_root(where: str, path: Path, digest: str, root: str) -> None:
    """Raise `ModelLoadError` if the server's folder is here to be looked at, and is another."""
    served = Path(root)
    if not root or not served.is_absolute() or not served.is_dir():
        return
    if served.resolve() == path.resolve():
        return
    if model_and_tokenizer_digest(served) != digest:
        raise ModelLoadError(
            f"{where} was started with {served}, whose files are not those of {path}: correct path "
            "in the scorer's section, or start the server with that folder"
        )


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -700.0), 700.0)))


def _numbers(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.4g}" for value in values)
