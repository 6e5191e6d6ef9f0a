"""Policy versions: which are held, which is active, and what became of challengers."""

from bond_server.metrics.instruments import Instruments


class PolicyMetrics:
    """Of this gateway; what the store says of versions is in `store_metrics`."""

    def __init__(self, make: Instruments) -> None:
        self.adapter_info = make.gauge(
            "adapter_info", "1 for each policy version that the engine holds.", "version", "role"
        )
        self.active_version = make.gauge(
            "active_policy_version", "Number of the version that 'distilled' means."
        )
        self.transitions = make.counter(
            "policy_transitions_total", "Versions activated, rejected, rolled back.", "outcome"
        )
        self.controller = make.gauge(
            "controller", "1 while this gateway holds the controller's lease."
        )
