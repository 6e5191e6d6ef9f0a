"""Why a request is not let in, with what the answer says besides its body."""

from collections.abc import Mapping

from bond_core.errors import BondError


class AccessError(BondError):
    """A request that is not let in; `headers` go with the answer."""

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers: Mapping[str, str] = headers or {}


class InvalidKeyError(AccessError):
    """No key, or none that is valid."""

    def __init__(self, message: str) -> None:
        super().__init__(message, {"www-authenticate": "Bearer"})


class MissingScopeError(AccessError):
    """The key may not do this."""


class CsrfError(AccessError):
    """A cookie alone does not prove that its owner wanted the change."""


class LimitExceededError(AccessError):
    """The key has used what it may; the headers say when to come back."""
