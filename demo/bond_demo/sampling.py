"""Fresh answers of the reference and of one version, on the report half, scored."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bond_core.config import BondConfig, EngineConfig, LocalEngineConfig
from bond_core.engines import Engine, build_engine
from bond_core.rewards import Scorer, build_scorer
from bond_core.types import REFERENCE_VERSION, Completion, Conversation, Generation
from bond_demo.measures import FloatArray, FreshSamples

_PROMPTS_AT_ONCE = 16
"""Enough for a large batch of the embedded engine, few enough to keep to the time."""
_MIN_PROMPTS = 16
_MAX_THREADS = 4
"""More do not make a model of a few million parameters faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """How much to draw, and when to stop."""

    reference_samples: int
    distilled_samples: int
    limit_s: float
    """No further prompts are begun after it, but at least 16 are answered."""
    seed: int


@dataclass(frozen=True, slots=True)
class _Answered:
    """One prompt with its answers from both sides."""

    reference_proxy: list[float]
    reference_gold: list[float]
    distilled_proxy: list[float]
    distilled_gold: list[float]
    distilled: Generation


async def draw_fresh_samples(
    config: BondConfig,
    version: str,
    adapter: Path | None,
    prompts: Sequence[Conversation],
    plan: SamplingPlan,
    on_progress: Callable[[int], None],
) -> FreshSamples:
    """Sample, score and measure with engine and scorers of this process alone.

    Gateway and trainer should have ended: every core is used. `adapter` is the version's
    directory, None for the reference. `on_progress` takes the number of prompts answered.
    """
    if config.gold is None:
        raise ValueError("the demo's evaluation needs the gold scorer")
    engine = build_engine(
        _for_alone(config.engine, plan), config.model, adapters_dir=config.adapters_dir
    )
    proxy, gold = build_scorer(config.scorer), build_scorer(config.gold)
    await engine.start()
    try:
        await proxy.start()
        await gold.start()
        if adapter is not None:
            await engine.load_adapter(version, adapter)
        sampler = _Sampler(engine, proxy, gold, config, version, plan)
        answered = await sampler.answer_all(prompts, on_progress)
    finally:
        await gold.close()
        await proxy.close()
        await engine.close()
    kl_PS = await asyncio.to_thread(_kl_to_reference, config, adapter, answered)
    return _as_arrays(version, answered, kl_PS)


def _kl_to_reference(
    config: BondConfig, adapter: Path | None, answered: Sequence[_Answered]
) -> FloatArray:
    """KL along each distilled answer, `(prompts, samples)`; zero if the reference drew them."""
    if adapter is None:
        return np.zeros((len(answered), len(answered[0].distilled_proxy)))
    from bond_demo.per_token_kl import per_token_kl  # loads torch

    generations = [prompt.distilled for prompt in answered]
    return np.array(per_token_kl(config.model, adapter, generations, config.sampling.temperature))


def _for_alone(engine: EngineConfig, plan: SamplingPlan) -> EngineConfig:
    """The engine's settings for a process that has the machine to itself."""
    if not isinstance(engine, LocalEngineConfig):
        return engine
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    rows = _PROMPTS_AT_ONCE * (plan.reference_samples + plan.distilled_samples)
    return engine.model_copy(update={"threads": threads, "max_rows": rows})


class _Sampler:
    def __init__(
        self,
        engine: Engine,
        proxy: Scorer,
        gold: Scorer,
        config: BondConfig,
        version: str,
        plan: SamplingPlan,
    ) -> None:
        self._engine = engine
        self._proxy = proxy
        self._gold = gold
        self._params = config.sampling.params()
        self._version = version
        self._plan = plan

    async def answer_all(
        self, prompts: Sequence[Conversation], on_progress: Callable[[int], None]
    ) -> list[_Answered]:
        """Answer prompts in order, several at once, until they or the time are used up."""
        ends = time.monotonic() + self._plan.limit_s
        waiting = iter(enumerate(prompts))
        answered: list[_Answered] = []

        async def answer_some() -> None:
            while time.monotonic() < ends or len(answered) < _MIN_PROMPTS:
                place, prompt = next(waiting, (0, None))
                if prompt is None:
                    return
                answered.append(await self._answer(prompt, place))
                on_progress(len(answered))

        async with asyncio.TaskGroup() as group:
            for _ in range(_PROMPTS_AT_ONCE):
                group.create_task(answer_some())
        return answered

    async def _answer(self, prompt: Conversation, place: int) -> _Answered:
        seed = self._plan.seed + 2 * place
        reference, distilled = await asyncio.gather(
            self._engine.generate(
                REFERENCE_VERSION,
                prompt,
                replace(self._params, seed=seed),
                self._plan.reference_samples,
            ),
            self._engine.generate(
                self._version,
                prompt,
                replace(self._params, seed=seed + 1),
                self._plan.distilled_samples,
            ),
        )
        return _Answered(
            *await self._score(prompt, reference.completions),
            *await self._score(prompt, distilled.completions),
            distilled=distilled,
        )

    async def _score(
        self, prompt: Conversation, completions: Sequence[Completion]
    ) -> tuple[list[float], list[float]]:
        """Proxy and gold of one prompt's answers."""
        texts = [completion.text for completion in completions]
        prompts = [prompt] * len(texts)
        return await self._proxy.score(prompts, texts), await self._gold.score(prompts, texts)


def _as_arrays(version: str, answered: Sequence[_Answered], kl_PS: FloatArray) -> FreshSamples:
    return FreshSamples(
        version=version,
        reference_proxy_PK=np.array([a.reference_proxy for a in answered]),
        reference_gold_PK=np.array([a.reference_gold for a in answered]),
        distilled_proxy_PS=np.array([a.distilled_proxy for a in answered]),
        distilled_gold_PS=np.array([a.distilled_gold for a in answered]),
        distilled_kl_PS=kl_PS,
    )
