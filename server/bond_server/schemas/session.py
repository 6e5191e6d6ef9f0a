"""Sessions on the wire."""

from typing import Literal

from pydantic import BaseModel


class SessionView(BaseModel):
    """Who asks, and what they may do."""

    object: Literal["bond.session"] = "bond.session"
    open: bool
    """The gateway has no keys, and lets everyone do everything."""
    key: str | None
    """Id of the key."""
    name: str | None
    scopes: list[str]
    expires_at: float | None
    """When the cookie's session ends, in Unix seconds; null without a cookie."""
    csrf_token: str | None
    """What changes by this cookie need as the header `x-csrf-token`; null without a cookie."""
