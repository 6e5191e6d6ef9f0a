"""Every instrument of one gateway, in a registry of its own."""

from functools import cache

from prometheus_client import CollectorRegistry, generate_latest

from bond_core import __version__
from bond_server.metrics.admission import AdmissionMetrics
from bond_server.metrics.answers import AnswerMetrics
from bond_server.metrics.follow_up import FollowUpMetrics
from bond_server.metrics.instruments import Instruments
from bond_server.metrics.keeping import KeepingMetrics
from bond_server.metrics.policies import PolicyMetrics
from bond_server.metrics.upstreams import Upstreams


class Metrics:
    """All subjects."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make = Instruments(self.registry)
        make.gauge("build_info", "The running version of bondserve.", "version").labels(
            __version__
        ).set(1)
        self.model_info = make.gauge("model_info", "1; the base model.", "model_name")
        self.http_requests = cache(
            make.counter(
                "http_requests_total", "HTTP requests by route and status.",
                "route", "method", "code",
            ).labels
        )  # fmt: skip
        self.upstreams = Upstreams()
        self.registry.register(self.upstreams)
        self.admission = AdmissionMetrics(make)
        self.answers = AnswerMetrics(make)
        self.follow_up = FollowUpMetrics(make)
        self.keeping = KeepingMetrics(make)
        self.policies = PolicyMetrics(make)

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)
