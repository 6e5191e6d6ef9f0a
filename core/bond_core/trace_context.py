"""The headers that carry a trace from a caller's span to the servers behind engines and scorers.

Set around a call by whoever makes spans; nothing here knows what makes them.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

TRACE_HEADERS: ContextVar[Mapping[str, str] | None] = ContextVar("bond_trace_headers", default=None)
"""`traceparent` and `tracestate` (W3C Trace Context) of what the running task does; None if it is
not traced."""


@contextmanager
def carried(headers: Mapping[str, str]) -> Generator[None]:
    """Requests that are sent within carry these headers."""
    token = TRACE_HEADERS.set(headers)
    try:
        yield
    finally:
        TRACE_HEADERS.reset(token)
