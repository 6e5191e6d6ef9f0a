"""The provider of spans, and the exporter that it sends them to."""

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from bond_core import __version__
from bond_core.config import TracingConfig


def configured_exporter(config: TracingConfig) -> SpanExporter:
    """OTLP over HTTP or gRPC. Raises `ModuleNotFoundError` if it is not installed."""
    base = config.endpoint.rstrip("/")
    if config.exporter == "otlp_grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as OverGrpc,
        )

        return OverGrpc(endpoint=base or None)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp(endpoint=f"{base}/v1/traces" if base else None)


def provider_of(config: TracingConfig, exporter: SpanExporter) -> TracerProvider:
    """Sends spans from a thread of its own, many at once, and drops them if it falls behind."""
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample)),
        resource=Resource.create(
            {"service.name": config.service_name, "service.version": __version__}
        ),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
