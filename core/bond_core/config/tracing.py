"""Where spans go, if anywhere."""

from typing import Literal

from pydantic import Field

from bond_core.config.base import Section


class TracingConfig(Section):
    """OpenTelemetry spans of requests; off by default, and then without cost. Needs
    `pip install 'bondserve[otel]'`. The variables `OTEL_EXPORTER_OTLP_…` (headers, certificates,
    time-outs) are honoured."""

    exporter: Literal["none", "otlp_http", "otlp_grpc"] = "none"
    """OTLP over HTTP or over gRPC; `none` makes no spans."""
    endpoint: str = ""
    """Base URL of the collector, as http://localhost:4318; by default the exporter's own."""
    service_name: str = "bondserve"
    """`service.name` of the spans."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced, of those whose caller has not decided."""
    content: bool = False
    """Put prompts and answers into the spans, where the log may keep them too."""
