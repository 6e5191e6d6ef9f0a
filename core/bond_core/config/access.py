"""Who may ask, and how much one request may carry."""

from pydantic import Field

from bond_core.config.base import Section


class AccessConfig(Section):
    """Keys, sessions, and the bounds of one request. `bond keys` makes keys."""

    allow_open: bool = False
    """Listen on an address other than loopback although no key exists."""
    refresh_s: float = Field(default=0.5, gt=0, le=10)
    """How often the gateway looks for changed keys: so long a revocation takes to hold."""
    session_s: float = Field(default=43200.0, gt=0)
    """How long a browser's session lasts, in seconds."""
    metrics_host: str = "127.0.0.1"
    """Address of the listener for `/metrics` alone, which asks for no key."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Its port; 0 takes a free one and logs it. None: there is none, and `/metrics` is among the
    other routes."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Largest request body."""
    body_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """How long a body may take to come in, from the first look at it; slower ones get 408. So long
    may the head of a request take as well; a connection without one is then closed."""
    max_messages: int = Field(default=2048, ge=1)
    """Most messages of one request."""
    max_json_depth: int = Field(default=32, ge=8, le=256)
    """Deepest nesting of objects and lists in a body."""
