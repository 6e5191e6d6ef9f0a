"""Answers that are measured after they were given."""

from bond_server.metrics.buckets import LOG_RATIO_BUCKETS_NATS
from bond_server.metrics.instruments import Instruments


class FollowUpMetrics:
    """What waits to be measured, what failed, and the log-ratios found."""

    def __init__(self, make: Instruments) -> None:
        self.queue = make.gauge(
            "follow_up_queue_rows", "Answers waiting to be scored after the fact."
        )
        self.failures = make.counter(
            "follow_up_failures_total", "Answers that could not be judged after the fact.", "step"
        )
        self.postponed = make.counter(
            "follow_up_postponed_total", "Answers left to the sweep because the queue was full."
        )
        self.log_ratio = make.histogram(
            "log_ratio_nats",
            "log policy(answer) - log reference(answer) of distilled answers.",
            LOG_RATIO_BUCKETS_NATS,
        )
