"""Which servers that answers depend on are up."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@runtime_checkable
class HasServers(Protocol):
    """An engine or scorer that asks servers over HTTP."""

    def servers(self) -> Mapping[str, bool]:
        """Whether each server takes requests, by its base URL."""
        ...


class Upstreams(Collector):
    """Which of the servers that answers depend on are up, asked for when the metrics are."""

    def __init__(self) -> None:
        self._sources: list[tuple[str, HasServers]] = []

    def watch(self, role: str, source: object) -> None:
        """Tell the servers of an engine or scorer from now on, if it has any."""
        if isinstance(source, HasServers):
            self._sources.append((role, source))

    def collect(self) -> Iterable[Metric]:
        """One sample per server."""
        family = GaugeMetricFamily(
            "bond_server_up", "1 while a server takes requests.", labels=("role", "server")
        )
        for role, source in self._sources:
            for url, up in source.servers().items():
                family.add_metric((role, url), float(up))
        return (family,)
