"""What is known of a request before its body is read."""

from dataclasses import dataclass

from bond_core.store import ALL_SCOPES, Scope
from bond_server.access.meter import UNMETERED, Meter

CONTEXT_KEY = "bond.context"
"""Where the request's scope has its context."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what was agreed with them."""

    key_id: str | None = None
    """None while the deployment has no keys."""
    name: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES
    log_content: bool | None = None
    """Keep prompts and answers; None is the deployment's setting."""
    may_train: bool | None = None
    """False: never. True: unless the request says no. None is the deployment's setting."""


ANYONE = Caller()
"""Whoever asks a gateway that has no keys."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Made by the outermost middleware, carried to the row and to the headers."""

    request_id: str
    arrived_at: float
    """Unix seconds."""
    started: float
    """`time.perf_counter()` at arrival, for durations."""
    caller: Caller = ANYONE
    meter: Meter = UNMETERED
    """Counts the tokens of the request against its key's limit."""
