"""`/metrics` on an address of its own, for a scraper that has no key."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import start_http_server
from prometheus_client.registry import CollectorRegistry

from bond_core.config import AccessConfig
from bond_core.errors import ConfigError

logger = logging.getLogger(__name__)


@contextmanager
def metrics_listener(access: AccessConfig, registry: CollectorRegistry) -> Generator[None]:
    """Serve the registry on a thread, if a port is configured. Raises `ConfigError` if that cannot
    be listened on."""
    if access.metrics_port is None:
        yield
        return
    host, port = access.metrics_host, access.metrics_port
    try:
        listener, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} for metrics: {error.strerror or error}; change "
            "access.metrics_host or access.metrics_port"
        ) from None
    logger.info("metrics are on http://%s:%d/metrics", host, listener.server_port)
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
