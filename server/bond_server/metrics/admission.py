"""Requests in the making, those that wait, and those that were not begun."""

from bond_server.metrics.instruments import Instruments


class AdmissionMetrics:
    """What the queue holds and refuses; a row is a candidate. Gauges are asked when they are
    looked at, which is far less often than they change."""

    def __init__(self, make: Instruments) -> None:
        self.in_flight = make.gauge("in_flight_requests", "Requests being answered.")
        self.running_rows = make.gauge("running_rows", "Candidates of the requests being answered.")
        self.waiting_rows = make.gauge("waiting_rows", "Candidates of the requests that wait.")
        self.waiting_requests = make.gauge("waiting_requests", "Requests that wait to be answered.")
        self.refused = make.counter(
            "admission_refused_total", "Requests that were not begun, by reason.", "reason"
        )
