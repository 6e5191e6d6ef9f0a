"""Spans of one gateway, by the GenAI conventions of one pinned version."""

import asyncio
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bond_core import __version__
from bond_core.store.records import CompletionRecord
from bond_core.types import Completion, Conversation, SamplingParams, raw_prompt
from bond_server.ids import COMPLETION_PREFIX, TEXT_COMPLETION_PREFIX

SEMANTIC_CONVENTIONS = "1.44.0"
"""OpenTelemetry's semantic conventions that the attributes follow; those of generative AI are still
in development, and names change between versions."""
CHAT = "chat"
CONTINUATION = "text_completion"
"""Operations: a conversation's next turn, and raw text that goes on."""

Attributes = dict[str, str | bool | int | float | Sequence[str]]


class Tracing:
    """Makes spans, and closes what sends them."""

    def __init__(self, provider: TracerProvider, engine: str, content: bool) -> None:
        self._provider = provider
        self._engine = engine
        self._content = content
        self._propagator = TraceContextTextMapPropagator()
        schema = f"https://opentelemetry.io/schemas/{SEMANTIC_CONVENTIONS}"
        self._tracer = provider.get_tracer("bond_server", __version__, schema)

    def request(self, method: str, carrier: Mapping[str, str]) -> Span:
        """The span of a request, in the trace that its `traceparent` names, or in a new one."""
        return self._tracer.start_span(
            method,
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": method},
        )

    @contextmanager
    def child(self, name: str, kind: SpanKind, attributes: Attributes) -> Generator[Span]:
        """A span of the running request's, which is told how it failed."""
        span = self._tracer.start_span(name, kind=kind, attributes=attributes)
        try:
            # not the current one: it may end in another task than it began in
            yield span
        except BaseException as error:
            fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def headers(self, span: Span) -> dict[str, str]:
        """What carries a span to a server that is asked on its behalf."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier

    def sampling(
        self,
        operation: str,
        model: str,
        version: str,
        params: SamplingParams,
        n: int,
        *,
        stream: bool,
    ) -> Attributes:
        """What is asked of the engine; `n` candidates are one request there."""
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self._engine,
            "gen_ai.request.model": model,
            "gen_ai.request.choice.count": n,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.presence_penalty": params.presence_penalty,
            "gen_ai.request.frequency_penalty": params.frequency_penalty,
            "bond.policy.version": version,
        }
        if params.top_k:
            attributes["gen_ai.request.top_k"] = params.top_k
        if params.seed is not None:
            attributes["gen_ai.request.seed"] = params.seed
        if params.stop:
            attributes["gen_ai.request.stop_sequences"] = list(params.stop)
        if stream:
            attributes["gen_ai.request.stream"] = True
        return attributes

    def answered(self, record: CompletionRecord) -> None:
        """Tell the request's span what became of it, once its row is committed."""
        span = get_current_span()
        if not span.is_recording():
            return
        by_index = {candidate.index: candidate.completion for candidate in record.candidates}
        chosen = [by_index[index] for index in record.chosen]
        operation = operation_of(record.messages)
        span.update_name(f"{operation} {record.requested_model}")
        prefix = COMPLETION_PREFIX if operation == CHAT else TEXT_COMPLETION_PREFIX
        response_id = prefix + record.id
        span.set_attributes(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "bondserve",
                "gen_ai.request.model": record.requested_model,
                "gen_ai.request.choice.count": record.n,
                "gen_ai.response.id": response_id,
                "gen_ai.response.model": record.requested_model,
                "gen_ai.response.finish_reasons": [c.finish_reason for c in chosen],
                "bond.arm": record.arm.value,
                "bond.policy.version": record.version,
                "bond.best_of": record.best_of,
                "bond.queue_ms": 1000 * record.queue_s,
                **usage(len(record.prompt_token_ids), record.generated_tokens),
            }
        )
        if record.experiment is not None:
            span.set_attribute("bond.experiment", record.experiment)
        if record.degraded is not None:
            span.set_attribute("bond.degraded", record.degraded)
        if record.score is not None:
            span.add_event(
                "gen_ai.evaluation.result",
                {
                    "gen_ai.evaluation.name": "reward",
                    "gen_ai.evaluation.score.value": record.score,
                    "gen_ai.response.id": response_id,
                },
            )
        if self._content and record.keep_content and not record.redacted:
            span.set_attributes(_content(record.messages, chosen))

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)


def operation_of(prompt: Conversation) -> str:
    """What is done with a prompt, by the conventions' names."""
    return CHAT if raw_prompt(prompt) is None else CONTINUATION


def usage(prompt_tokens: int, generated_tokens: int) -> Attributes:
    """Tokens read once, and generated over all candidates."""
    return {
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.output_tokens": generated_tokens,
    }


def fail(span: Span, error_type: str) -> None:
    """Mark a span as failed; the message may quote what was asked, so it stays out."""
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


def entered(span: Span):
    """Make a span the running task's; whoever entered ends it."""
    return use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False)


def _content(messages: Conversation, chosen: Sequence[Completion]) -> Attributes:
    def told(role: str, text: str) -> dict[str, object]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    asked = [told(message.role, message.content) for message in messages]
    said = [{**told("assistant", c.text), "finish_reason": c.finish_reason} for c in chosen]
    return {
        "gen_ai.input.messages": json.dumps(asked, ensure_ascii=False),
        "gen_ai.output.messages": json.dumps(said, ensure_ascii=False),
    }
