"""What is kept of requests, and for how long."""

from bond_server.metrics.instruments import Instruments


class KeepingMetrics:
    """Retention, redaction, and answers kept under keys."""

    def __init__(self, make: Instruments) -> None:
        self.expired = make.counter("expired_total", "What retention has deleted.", "kind")
        self.redactions = make.counter(
            "redactions_total", "Rows that the redaction function saw.", "outcome"
        )
        self.idempotent_requests = make.counter(
            "idempotent_requests_total", "Requests with an Idempotency-Key.", "outcome"
        )
