"""OpenTelemetry spans: a parent for each request, children for sampling and for scoring.

Nothing of this is loaded, wrapped or called while `tracing.exporter` is `none`.
"""

from typing import TYPE_CHECKING

from bond_core.config import BondConfig
from bond_core.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from bond_server.tracing.spans import Tracing


def open_tracing(config: BondConfig, exporter: "SpanExporter | None" = None) -> "Tracing | None":
    """What makes spans, or None if there are to be none. `exporter` takes the place of the
    configured one.

    Raises `ConfigError` with the command to run if OpenTelemetry is not installed.
    """
    if config.tracing.exporter == "none" and exporter is None:
        return None
    try:
        from bond_server.tracing.export import configured_exporter, provider_of
        from bond_server.tracing.spans import Tracing

        sent_to = exporter or configured_exporter(config.tracing)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.exporter is {config.tracing.exporter}, and the package {error.name!r} is not "
            "installed: run  pip install 'bondserve[otel]'"
        ) from error
    provider = provider_of(config.tracing, sent_to)
    return Tracing(provider, config.engine.type, config.tracing.content)
