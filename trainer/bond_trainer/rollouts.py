"""Rollouts: what policy and anchor answer to a batch of prompts, with rewards.

Everything goes through the engine protocol, at the standard sampling and with the same rendering
as serving, so that what is learned from is what is served.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bond_core.config import FixedBondConfig, JBondConfig, ObjectiveConfig
from bond_core.engines.base import Engine
from bond_core.errors import PromptTooLongError, ScorerUnavailableError, ScoringError
from bond_core.rewards.base import Scorer
from bond_core.types import Completion, Conversation, Generation, SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer with its reward."""

    token_ids: tuple[int, ...]
    """With the end-of-sequence token, if it was drawn."""
    logprobs: tuple[float, ...]
    """Of each token, nats, under the policy and distribution that it was drawn from."""
    reward: float
    text: str

    @property
    def logprob(self) -> float:
        """Of the whole answer, nats."""
        return sum(self.logprobs)

    @classmethod
    def of(cls, completion: Completion, reward: float) -> "Rollout":
        """A completion once it is scored."""
        return cls(completion.token_ids, completion.logprobs, reward, completion.text)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The rollouts of one prompt: P of the policy, k of the anchor."""

    prompt_token_ids: tuple[int, ...]
    policy: tuple[Rollout, ...]
    anchor: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class RolloutCost:
    """What collecting took, and what it left out."""

    generate_s: float
    score_s: float
    num_tokens: int
    """Tokens drawn."""
    num_samples: int = 0
    """Completions drawn: k + P for each prompt, less what the log already had."""
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    """Prompts that gave no rollouts, by reason: `too_long`, `scoring_failed`."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A version to sample from, how often for each prompt, and the name of its random stream."""

    version: str
    num_samples: int | Sequence[int]
    """For all prompts, or for each; nothing is drawn for 0."""
    stream: str

    def count(self, i: int) -> int:
        """For prompt i."""
        return self.num_samples if isinstance(self.num_samples, int) else self.num_samples[i]


def samples_per_prompt(objective: ObjectiveConfig) -> tuple[int, int]:
    """How many answers of policy and of anchor a step draws for each prompt."""
    if isinstance(objective, JBondConfig | FixedBondConfig):
        return objective.num_policy_samples, objective.num_anchor_samples
    return objective.num_policy_samples, 0


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part; equal parts give equal seeds on any machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


async def sample(
    engine: Engine,
    draws: Sequence[Draw],
    prompts: Sequence[Conversation],
    params: SamplingParams,
    seed: int,
) -> list[list[Generation | PromptTooLongError]]:
    """For each draw and prompt, the completions, or why the engine refuses the prompt; all are
    requested at once, so that the engine batches them.

    Prompt i of a draw has its own seed from (`seed`, stream, i): the result does not depend on
    batching, and two draws from one version under different streams are independent.
    """

    async def one(draw: Draw, i: int) -> Generation | PromptTooLongError:
        own = replace(params, seed=derived_seed(seed, draw.stream, i))
        if draw.count(i) == 0:
            return Generation((), ())
        try:
            return await engine.generate(draw.version, prompts[i], own, n=draw.count(i))
        except PromptTooLongError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [[group.create_task(one(draw, i)) for i in range(len(prompts))] for draw in draws]
    return [[task.result() for task in row] for row in tasks]


async def score_generations(
    scorer: Scorer, prompts: Sequence[Conversation], generations: Sequence[Generation]
) -> list[list[float]]:
    """One score per completion, grouped by prompt; one batched call."""
    flat_prompts = [
        prompt
        for prompt, generation in zip(prompts, generations, strict=True)
        for _ in generation.completions
    ]
    texts = [c.text for generation in generations for c in generation.completions]
    scores = iter(await scorer.score(flat_prompts, texts))
    return [[next(scores) for _ in generation.completions] for generation in generations]


async def score_each(
    scorer: Scorer,
    prompts: Sequence[Conversation],
    generations: Sequence[Sequence[Generation]],
) -> list[list[list[float]] | ScoringError]:
    """For each prompt the scores of each of its generations, or why it cannot be scored.

    One batched call; only when that fails is each prompt scored by itself, so that one bad answer
    costs its own prompt and no other. Raises the `ScoringError` of the batch if no prompt at all
    can be scored: then the scorer is at fault. `ScorerUnavailableError` is raised at once, since no
    prompt is to blame for it.
    """
    if not prompts:
        return []
    repeated = [p for p, own in zip(prompts, generations, strict=True) for _ in own]
    try:
        scores = iter(
            await score_generations(scorer, repeated, [g for own in generations for g in own])
        )
    except ScorerUnavailableError:
        raise
    except ScoringError as error:
        logger.warning("scoring each prompt by itself, since the batch failed: %s", error)
        found = [
            await _score_prompt(scorer, prompt, own)
            for prompt, own in zip(prompts, generations, strict=True)
        ]
        if all(isinstance(result, ScoringError) for result in found):
            raise
        return found
    return [[next(scores) for _ in own] for own in generations]


async def _score_prompt(
    scorer: Scorer, prompt: Conversation, generations: Sequence[Generation]
) -> list[list[float]] | ScoringError:
    try:
        return await score_generations(scorer, [prompt] * len(generations), generations)
    except ScorerUnavailableError:
        raise
    except ScoringError as error:
        return error


async def collect(
    engine: Engine,
    scorer: Scorer,
    prompts: Sequence[Conversation],
    params: SamplingParams,
    *,
    num_policy_samples: int,
    num_anchor_samples: int,
    seed: int,
    logged: Sequence[Sequence[Completion]] = (),
) -> tuple[list[RolloutGroup], RolloutCost]:
    """Roll out a batch of prompts from the engine's versions `policy` and `anchor`.

    `logged` are, for each prompt, completions that the anchor's distribution already gave: the
    first `num_anchor_samples` of them are taken, and only what is missing is drawn. They are
    scored again, with the scorer that is in use now. A prompt that does not fit into the context,
    or whose answers cannot be scored, is left out and counted. Raises `ScoringError` if none can
    be scored: no reward is ever made up.
    """
    started = time.perf_counter()
    given = [tuple(own[:num_anchor_samples]) for own in logged] or [()] * len(prompts)
    draws = [
        Draw("anchor", [num_anchor_samples - len(own) for own in given], "anchor"),
        Draw("policy", num_policy_samples, "policy"),
    ]
    anchor, policy = await sample(engine, draws, prompts, params, seed)
    generated = time.perf_counter()
    fitting = [
        (prompt, (replace(a, completions=(*own, *a.completions)), p), len(own))
        for prompt, own, a, p in zip(prompts, given, anchor, policy, strict=True)
        if isinstance(a, Generation) and isinstance(p, Generation)
    ]
    left_out = Counter(too_long=len(prompts) - len(fitting))
    scores = await score_each(scorer, [p for p, _, _ in fitting], [own for _, own, _ in fitting])
    scored = time.perf_counter()
    groups: list[RolloutGroup] = []
    num_tokens = num_samples = 0
    for (_, (a, p), num_given), result in zip(fitting, scores, strict=True):
        drawn = (*a.completions[num_given:], *p.completions)
        num_samples += len(drawn)
        num_tokens += sum(len(completion.token_ids) for completion in drawn)
        if isinstance(result, ScoringError):
            left_out["scoring_failed"] += 1
            logger.warning("left out a prompt: %s", result)
        else:
            prompt_token_ids = p.prompt_token_ids or a.prompt_token_ids
            groups.append(
                RolloutGroup(prompt_token_ids, _rollouts(p, result[1]), _rollouts(a, result[0]))
            )
    cost = RolloutCost(generated - started, scored - generated, num_tokens, num_samples, +left_out)
    return groups, cost


def _rollouts(generation: Generation, scores: Sequence[float]) -> tuple[Rollout, ...]:
    return tuple(
        Rollout.of(completion, score)
        for completion, score in zip(generation.completions, scores, strict=True)
    )
