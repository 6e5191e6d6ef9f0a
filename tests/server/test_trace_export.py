"""Spans over the wire: the real exporter, a collector that decodes OTLP, and the servers behind."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from faulty_pooling_server import running_server
from faulty_vllm_server import MODEL as SERVED
from faulty_vllm_server import running_vllm
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes
from opentelemetry.semconv.schemas import Schemas
from running_gateway import MODEL, MakeConfig, Run

from bond_server.tracing.spans import SEMANTIC_CONVENTIONS

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Collector:
    """An OTLP/HTTP receiver: what was exported to it, decoded."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def receive(self, request: web.Request) -> web.Response:
        assert request.headers["content-type"] == "application/x-protobuf"
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def one(self, kind: int, start: str) -> Span:
        [found] = [s for s in self.spans if s.kind == kind and s.name.startswith(start)]
        return found


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.port = runner.addresses[0][1]
    try:
        yield collector
    finally:
        await runner.cleanup()


def attributes(span: Span) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(item) for item in found.values] if kind == "array_value" else found

    return {pair.key: plain(pair.value) for pair in span.attributes}


def sent_to(collector: Collector) -> dict[str, Any]:
    return {"exporter": "otlp_http", "endpoint": collector.url, "service_name": "our-gateway"}


async def test_parent_sampling_and_scoring_reach_a_collector(
    run: Run, make_config: MakeConfig
) -> None:
    async with collecting() as collector:
        async with run(make_config(tracing=sent_to(collector))) as running:
            body = {"messages": [{"role": "user", "content": "hi"}], "best_of": 3}
            response = await running.client.post("/v1/best-of-n", json=body, headers=TRACEPARENT)
            answer = response.json()
            assert response.status_code == 200
        # closing the gateway has sent what was left
        assert len(collector.spans) == 3
        parent = collector.one(Span.SPAN_KIND_SERVER, f"chat {MODEL}:bon")
        sampling = collector.one(Span.SPAN_KIND_CLIENT, f"chat {MODEL}")
        scoring = collector.one(Span.SPAN_KIND_CLIENT, "score ")
        [resource] = {r.resource.SerializeToString(): r for r in _resources(collector)}.values()
    assert parent.trace_id.hex() == TRACE
    assert parent.parent_span_id.hex() == PARENT
    for child in (sampling, scoring):
        assert child.trace_id == parent.trace_id
        assert child.parent_span_id == parent.span_id
        assert parent.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= parent.end_time_unix_nano
    assert sampling.end_time_unix_nano <= scoring.start_time_unix_nano
    told = attributes(parent)
    assert told["gen_ai.response.id"] == answer["id"]
    assert told["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert told["http.response.status_code"] == 200
    assert attributes(sampling)["gen_ai.request.choice.count"] == 3
    assert attributes(scoring)["bond.score.best"] == answer["bond"]["score"]
    [event] = parent.events
    assert event.name == "gen_ai.evaluation.result"
    names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert names["service.name"] == "our-gateway"
    assert resource.scope_spans[0].schema_url.endswith(f"/{SEMANTIC_CONVENTIONS}")


def _resources(collector: Collector) -> Sequence[Any]:
    return [resource for request in collector.requests for resource in request.resource_spans]


async def test_raw_text_is_another_operation(run: Run, make_config: MakeConfig) -> None:
    async with collecting() as collector:
        async with run(make_config(tracing=sent_to(collector))) as running:
            body = {"model": f"{MODEL}:reference", "prompt": "Once upon a time"}
            answer = (await running.client.post("/v1/completions", json=body)).json()
        parent = collector.one(Span.SPAN_KIND_SERVER, f"text_completion {MODEL}:reference")
        sampling = collector.one(Span.SPAN_KIND_CLIENT, f"text_completion {MODEL}")
    assert attributes(parent)["gen_ai.operation.name"] == "text_completion"
    assert attributes(sampling)["gen_ai.operation.name"] == "text_completion"
    assert attributes(parent)["gen_ai.response.id"] == answer["id"]


async def streamed(request: web.Request) -> web.StreamResponse:
    """One token and the end, as vLLM streams them."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    logprobs = {"content": [{"token": "a", "logprob": 0.0, "top_logprobs": []}]}
    token = {"delta": {"content": "a"}, "token_ids": [5], "logprobs": logprobs}
    ends = [{"finish_reason": None, **token}, {"finish_reason": "stop", "delta": {}}]
    for choice in ends:
        chunk = {"choices": [{"index": 0, **choice}], "prompt_token_ids": [1, 2]}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def parts(traceparent: str | None) -> tuple[str, str, str]:
    assert traceparent is not None
    version, trace, span, flags = traceparent.split("-")
    assert version == "00"
    return trace, span, flags


async def test_the_servers_behind_get_the_span_that_asks_them(
    run: Run, make_config: MakeConfig
) -> None:
    async with (
        collecting() as collector,
        running_vllm() as policy,
        running_server() as rewards,
    ):
        config = make_config(
            engine={"type": "vllm", "urls": [policy.url]},
            model={"name": SERVED},
            scorer={"type": "pooling", "url": rewards.url, "self_test": None},
            tracing=sent_to(collector),
        )
        async with run(config) as running:
            policy.traceparents.clear()
            rewards.traceparents.clear()
            body = {"messages": [{"role": "user", "content": "hi"}]}
            best = await running.client.post("/v1/best-of-n", json=body, headers=TRACEPARENT)
            assert best.status_code == 200
            assert best.json()["bond"]["degraded"] is None
            [sampled], scored = list(policy.traceparents), list(rewards.traceparents)
            policy.fault = streamed
            single = await running.client.post(
                "/v1/chat/completions",
                json=body | {"stream": True, "model": f"{SERVED}:reference"},
                headers=TRACEPARENT,
            )
            assert single.text.endswith("data: [DONE]\n\n")
            of_stream = policy.traceparents[1]
            unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            policy.fault = None
            await running.client.post("/v1/best-of-n", json=body, headers=unsampled)
            assert parts(policy.traceparents[2])[2] == "00"  # what the caller decided goes on
        clients = [s for s in collector.spans if s.kind == Span.SPAN_KIND_CLIENT]
        by_name: dict[str, list[str]] = {}
        for span in clients:
            by_name.setdefault(span.name.split()[0], []).append(span.span_id.hex())
    assert parts(sampled) == (TRACE, by_name["chat"][0], "01")
    assert [parts(one) for one in set(scored)] == [(TRACE, by_name["score"][0], "01")]
    assert parts(of_stream) == (TRACE, by_name["chat"][1], "01")


async def test_without_tracing_nothing_is_passed_on(run: Run, make_config: MakeConfig) -> None:
    async with running_vllm() as policy:
        config = make_config(engine={"type": "vllm", "urls": [policy.url]}, model={"name": SERVED})
        async with run(config) as running:
            policy.traceparents.clear()
            body = {"messages": [{"role": "user", "content": "hi"}]}
            await running.client.post("/v1/best-of-n", json=body, headers=TRACEPARENT)
            assert policy.traceparents == [None]


def _names(*modules: object) -> set[str]:
    found: set[str] = set()
    for module in modules:
        values: Mapping[str, object] = vars(module)
        found |= {v for k, v in values.items() if k.isupper() and isinstance(v, str)}
    return found


@pytest.mark.parametrize("path", ["/v1/best-of-n", "/v1/distilled"])
async def test_every_name_is_one_of_the_conventions_or_ours(
    run: Run, make_config: MakeConfig, path: str
) -> None:
    known = _names(gen_ai_attributes, http_attributes, error_attributes)
    async with collecting() as collector:
        config = make_config(tracing=sent_to(collector) | {"content": True})
        async with run(config) as running:
            asked = {"seed": 1, "stop": ["!"], "top_k": 5, "stream": path == "/v1/distilled"}
            await running.post(path, **asked)
            await running.gateway.engine.close()
            await running.post(path)
        used = {key for span in collector.spans for key in attributes(span)}
        used |= {p.key for span in collector.spans for e in span.events for p in e.attributes}
    assert "error.type" in used
    assert "gen_ai.input.messages" in used
    assert {name for name in used if not name.startswith("bond.")} <= known
    assert SEMANTIC_CONVENTIONS in {schema.value.rpartition("/")[2] for schema in Schemas}
