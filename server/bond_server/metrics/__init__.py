"""Prometheus metrics of one gateway: a module per subject, together in `Metrics`."""

from bond_server.metrics.all import Metrics

__all__ = ["Metrics"]
