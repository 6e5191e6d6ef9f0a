"""An engine and a scorer that tell spans what they are asked on the hot path."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from opentelemetry.trace import SpanKind

from bond_core.engines import Engine
from bond_core.engines.base import Partial
from bond_core.rewards import Scorer
from bond_core.trace_context import carried
from bond_core.types import Conversation, Generation, SamplingParams, TextDelta
from bond_server.tracing.spans import Tracing, operation_of, usage


def traced_engine(engine: Engine, tracing: Tracing) -> Engine:
    """The same engine; sampling from it makes a span."""
    return cast(Engine, _TracedEngine(engine, tracing))


def traced_scorer(scorer: Scorer, tracing: Tracing) -> Scorer:
    """The same scorer; scoring with it makes a span."""
    return cast(Scorer, _TracedScorer(scorer, tracing))


class _TracedEngine:
    def __init__(self, engine: Engine, tracing: Tracing) -> None:
        self._engine = engine
        self._tracing = tracing
        self._model = engine.info.base_model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        """See `Engine.generate`."""
        operation = operation_of(prompt)
        asked = self._tracing.sampling(operation, self._model, version, params, n, stream=False)
        with self._tracing.child(f"{operation} {self._model}", SpanKind.CLIENT, asked) as span:
            with carried(self._tracing.headers(span)):
                found = await self._engine.generate(version, prompt, params, n, partial)
            reasons = [completion.finish_reason for completion in found.completions]
            span.set_attribute("gen_ai.response.finish_reasons", reasons)
            generated = sum(len(completion.token_ids) for completion in found.completions)
            span.set_attributes(usage(len(found.prompt_token_ids), generated))
            return found

    async def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncGenerator[TextDelta]:
        """See `Engine.stream`."""
        operation = operation_of(prompt)
        asked = self._tracing.sampling(operation, self._model, version, params, 1, stream=True)
        with self._tracing.child(f"{operation} {self._model}", SpanKind.CLIENT, asked) as span:
            deltas = self._engine.stream(version, prompt, params)
            async with aclosing(cast(AsyncGenerator[TextDelta], deltas)) as pieces:
                with carried(self._tracing.headers(span)):  # the request is sent with the first
                    piece = await anext(pieces, None)
                while piece is not None:
                    if (completion := piece.completion) is not None:
                        reasons = [completion.finish_reason]
                        span.set_attribute("gen_ai.response.finish_reasons", reasons)
                        generated = len(completion.token_ids)
                        span.set_attributes(usage(len(piece.prompt_token_ids), generated))
                    yield piece
                    piece = await anext(pieces, None)


class _TracedScorer:
    def __init__(self, scorer: Scorer, tracing: Tracing) -> None:
        self._scorer = scorer
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        """See `Scorer.score`."""
        name = self._scorer.name
        asked: dict[str, str | int] = {"bond.scorer": name, "bond.scored": len(completions)}
        with self._tracing.child(f"score {name}", SpanKind.CLIENT, {**asked}) as span:
            with carried(self._tracing.headers(span)):
                scores = await self._scorer.score(prompts, completions)
            span.set_attribute("bond.score.best", max(scores))
            return scores
