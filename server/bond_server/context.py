"""What is known of a request before its body is read."""

from dataclasses import dataclass

CONTEXT_KEY = "bond.context"
"""Where the scope of a request has it."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Made by the outermost middleware, carried to the row and to the headers."""

    request_id: str
    arrived_at: float
    """Unix seconds."""
    started: float
    """`time.perf_counter()` at arrival, for durations."""
