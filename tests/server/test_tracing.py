"""Spans: one parent per request, children for sampling and scoring, by the pinned conventions."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from running_gateway import MODEL, MakeConfig, Run, Running, scorer

from bond_core.config import BondConfig
from bond_core.engines.fake import FakeEngine
from bond_core.errors import ConfigError
from bond_server.app import create_app
from bond_server.tracing.middleware import TracingMiddleware

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Traced = Callable[[BondConfig], AbstractAsyncContextManager[tuple[Running, "Spans"]]]


class Spans:
    """What was exported, once the gateway has sent it."""

    def __init__(self, app: Any, exporter: InMemorySpanExporter) -> None:
        self._app = app
        self._exporter = exporter

    def all(self) -> Sequence[ReadableSpan]:
        [tracing] = [
            m.kwargs["tracing"] for m in self._app.user_middleware if m.cls is TracingMiddleware
        ]
        tracing._provider.force_flush()
        return self._exporter.get_finished_spans()

    def one(self, kind: SpanKind, name: str) -> ReadableSpan:
        [found] = [s for s in self.all() if s.kind is kind and s.name == name]
        return found


@pytest.fixture
def traced() -> Traced:
    """Runs a gateway whose spans are kept in memory."""

    @asynccontextmanager
    async def running(config: BondConfig) -> AsyncGenerator[tuple[Running, Spans]]:
        exporter = InMemorySpanExporter()
        app = create_app(config, exporter)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield Running(app, app.state.gateway, client), Spans(app, exporter)

    return running


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_best_of_n_is_a_parent_with_one_child_that_samples_and_one_that_scores(
    traced: Traced, make_config: MakeConfig
) -> None:
    async with traced(make_config()) as (running, spans):
        response = await running.client.post(
            "/v1/best-of-n",
            json={
                "messages": [{"role": "user", "content": "hi"}],
                "best_of": 3,
                "n": 2,
                "max_tokens": 9,
                "seed": 5,
                "stop": ["!"],
            },
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
        body = response.json()
        assert len(spans.all()) == 3
        parent = spans.one(SpanKind.SERVER, f"chat {MODEL}:bon")
        sampling = spans.one(SpanKind.CLIENT, f"chat {MODEL}")
        [scoring] = [s for s in spans.all() if s.name.startswith("score ")]
    assert parent.parent is not None
    assert f"{parent.context.trace_id:032x}" == TRACE
    assert f"{parent.parent.span_id:016x}" == PARENT
    for child in (sampling, scoring):
        assert child.parent is not None
        assert child.parent.span_id == parent.context.span_id
    told = attributes(parent)
    assert (
        told.items()
        >= {
            "http.request.method": "POST",
            "http.route": "/v1/best-of-n",
            "http.response.status_code": 200,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": f"{MODEL}:bon",
            "gen_ai.response.id": body["id"],
            "gen_ai.request.choice.count": 2,
            "gen_ai.usage.input_tokens": body["usage"]["prompt_tokens"],
            "gen_ai.usage.output_tokens": body["usage"]["completion_tokens"],
            "gen_ai.response.finish_reasons": tuple(c["finish_reason"] for c in body["choices"]),
            "bond.arm": "bon",
            "bond.policy.version": "v0000",
            "bond.best_of": 3,
        }.items()
    )
    assert (
        attributes(sampling).items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "fake",
            "gen_ai.request.model": MODEL,
            "gen_ai.request.choice.count": 3,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.temperature": 1.0,
            "gen_ai.request.seed": 5,
            "gen_ai.request.stop_sequences": ("!",),
            "gen_ai.usage.output_tokens": body["usage"]["completion_tokens"],
        }.items()
    )
    assert attributes(scoring)["bond.score.best"] == body["bond"]["score"]
    [event] = parent.events
    assert event.name == "gen_ai.evaluation.result"
    assert dict(event.attributes or {}) == {
        "gen_ai.evaluation.name": "reward",
        "gen_ai.evaluation.score.value": body["bond"]["score"],
        "gen_ai.response.id": body["id"],
    }
    scope = parent.instrumentation_scope
    assert scope is not None
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert sampling.end_time is not None
    assert scoring.start_time is not None
    assert sampling.end_time <= scoring.start_time


async def test_a_stream_is_one_parent_and_one_child(
    traced: Traced, make_config: MakeConfig
) -> None:
    async with traced(make_config()) as (running, spans):
        response = await running.post("/v1/distilled", stream=True)
        assert response.text.endswith("data: [DONE]\n\n")
        parent = spans.one(SpanKind.SERVER, f"chat {MODEL}:distilled")
        sampling = spans.one(SpanKind.CLIENT, f"chat {MODEL}")
        assert len(spans.all()) == 2
    assert sampling.parent is not None
    assert sampling.parent.span_id == parent.context.span_id
    assert attributes(sampling)["gen_ai.request.stream"] is True
    assert attributes(sampling)["gen_ai.usage.output_tokens"] > 0


async def test_what_fails_is_an_error_without_the_message(
    traced: Traced, make_config: MakeConfig, rewards_file: Path
) -> None:
    config = make_config(scorer=scorer(rewards_file, "raises"))
    async with traced(config) as (running, spans):
        await running.post("/v1/best-of-n")
        [scoring] = [s for s in spans.all() if s.name.startswith("score ")]
        degraded = spans.one(SpanKind.SERVER, f"chat {MODEL}:bon")
        await running.gateway.engine.close()
        await running.post("/v1/distilled")
        failed = spans.one(SpanKind.SERVER, "POST")
        sampling = [s for s in spans.all() if s.kind is SpanKind.CLIENT][-1]
        await running.post("/v1/distilled", n=0)
        wrong = [s for s in spans.all() if s.name == "POST"][-1]
    assert scoring.status.status_code is StatusCode.ERROR
    assert attributes(scoring)["error.type"] == "ScoringError"
    assert attributes(degraded)["bond.degraded"] == "scoring_failed"
    assert degraded.status.status_code is StatusCode.UNSET
    assert attributes(sampling)["error.type"] == "EngineUnavailableError"
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is None
    assert attributes(failed)["error.type"] == "503"
    assert attributes(wrong)["http.response.status_code"] == 400
    assert wrong.status.status_code is StatusCode.UNSET  # the caller's mistake, not the server's


@pytest.mark.parametrize("content", [False, True])
async def test_content_is_in_spans_only_if_a_setting_says_so(
    traced: Traced, make_config: MakeConfig, content: bool
) -> None:
    async with traced(make_config(tracing={"content": content})) as (running, spans):
        answer = (await running.post("/v1/best-of-n")).json()["choices"][0]["message"]["content"]
        found = [(s.name, attributes(s), s.events) for s in spans.all()]
    told = json.dumps(found, default=str, ensure_ascii=False)
    assert ("where is my parcel?" in told) is content
    parent = next(a for _, a, _ in found if "gen_ai.response.id" in a)
    assert ("gen_ai.output.messages" in parent) is content
    if content:
        [said] = json.loads(parent["gen_ai.output.messages"])
        assert said["parts"] == [{"type": "text", "content": answer}]
        [asked] = json.loads(parent["gen_ai.input.messages"])
        assert asked == {
            "role": "user",
            "parts": [{"type": "text", "content": "where is my parcel?"}],
        }


async def test_content_that_the_log_may_not_keep_is_in_no_span(
    traced: Traced, make_config: MakeConfig
) -> None:
    config = make_config(tracing={"content": True}, server={"log_content": False})
    async with traced(config) as (running, spans):
        await running.post("/v1/best-of-n")
        assert not [s for s in spans.all() if "gen_ai.input.messages" in attributes(s)]


async def test_what_the_caller_does_not_sample_is_not_traced_and_nothing_health_is(
    traced: Traced, make_config: MakeConfig
) -> None:
    async with traced(make_config()) as (running, spans):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        body = {"messages": [{"role": "user", "content": "hi"}]}
        response = await running.client.post("/v1/best-of-n", json=body, headers=headers)
        assert response.status_code == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            await running.client.get(path)
        assert spans.all() == ()


async def test_off_nothing_is_wrapped_and_nothing_is_in_the_way(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        assert TracingMiddleware not in [m.cls for m in running.app.user_middleware]
        assert running.gateway.metrics.answers.on_answer == []
        generation: Any = running.gateway.generation
        assert type(generation._engine) is FakeEngine
        assert generation._scorer is running.gateway.judges.scorer


def test_off_the_sdk_is_not_even_loaded() -> None:
    code = "import sys, bond_server.serving; print('opentelemetry.sdk' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert found.stdout.strip() == "False", found.stderr


def test_a_missing_package_is_told_with_the_command(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'bondserve\[otel\]'"):
        create_app(make_config(tracing={"exporter": "otlp_http"}))
