"""Makes instruments under our prefix, in one registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Instruments:
    """Names begin with `bond_`; a counter's ends with `_total`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """What only grows."""
        return Counter(f"bond_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """What is so now."""
        return Gauge(f"bond_{name}", text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        """How values are distributed over buckets with these upper bounds."""
        return Histogram(f"bond_{name}", text, labels, buckets=buckets, registry=self.registry)
