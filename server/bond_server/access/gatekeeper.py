"""Who is let in: from the headers of a request to its caller."""

import hmac
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from bond_core.errors import StoreUnavailableError
from bond_core.store import ApiKey, KeyLimits, Scope, Store
from bond_core.store.access_records import NO_LIMITS, Session
from bond_server.access.failures import CsrfError, InvalidKeyError, MissingScopeError
from bond_server.access.keyring import Keyring
from bond_server.access.limiter import Limiter, limiter_of
from bond_server.access.meter import UNMETERED, Meter
from bond_server.access.rules import Rule
from bond_server.access.sessions import (
    CSRF_HEADER,
    UNSAFE_METHODS,
    csrf_token_of,
    session_token_in,
)
from bond_server.context import ANYONE, Caller

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request brings to prove who asks."""

    key: str | None
    session_token: str | None
    csrf_token: str

    @classmethod
    def of(cls, headers: Headers) -> "Credentials":
        """Those in the headers; a key goes before a cookie."""
        key = session_token = None
        csrf_token = ""
        for name, value in headers:
            if name == b"authorization":
                scheme, _, rest = value.decode("latin-1").partition(" ")
                key = rest.strip() if scheme.lower() == "bearer" else ""
            elif name == b"cookie":
                session_token = session_token or session_token_in(value.decode("latin-1"))
            elif name == CSRF_HEADER.encode():
                csrf_token = value.decode("latin-1")
        return cls(key, session_token, csrf_token)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A caller with what its key may use."""

    caller: Caller
    limits: KeyLimits = NO_LIMITS


class Gatekeeper:
    """Checks callers against the keyring; holds what limits are counted by."""

    def __init__(self, keyring: Keyring, limiter: Limiter) -> None:
        self.keyring = keyring
        self.limiter = limiter

    def admit(self, rule: Rule, method: str, path: str, credentials: Credentials) -> Admitted:
        """The caller of a request that may go on.

        Raises `InvalidKeyError`, `CsrfError` or `MissingScopeError`, and `StoreUnavailableError`
        if the keys have not been read for too long.
        """
        if not self.keyring.has_keys:
            return Admitted(ANYONE)
        key, _ = self.identify(method, credentials)
        if not rule.any_of & key.scopes:
            needed = " or ".join(scope for scope in Scope if scope in rule.any_of)
            held = ", ".join(sorted(key.scopes))
            raise MissingScopeError(
                f"{method} {path} needs a key with the scope {needed}; the key {key.name!r} has "
                f"{held}"
            )
        caller = Caller(key.id, key.name, key.scopes, key.log_content, key.train)
        return Admitted(caller, key.limits)

    def identify(self, method: str, credentials: Credentials) -> tuple[ApiKey, Session | None]:
        """The valid key behind a request, and its session if it came by cookie."""
        if credentials.key is not None:
            return self.keyring.key_of(credentials.key), None
        token = credentials.session_token
        if token is None:
            raise InvalidKeyError(
                "this gateway needs a key: send it as the header Authorization: Bearer sk-bond-…"
            )
        key, session = self.keyring.session_of(token)
        given = credentials.csrf_token.encode()
        if method in UNSAFE_METHODS and not hmac.compare_digest(
            given, csrf_token_of(token).encode()
        ):
            raise CsrfError(
                f"{method} by cookie needs the header {CSRF_HEADER} with the session's "
                "csrf_token, which GET /v1/session shows"
            )
        return key, session

    async def close(self) -> None:
        """Write down what is in memory alone; a store that is away is left as it is."""
        try:
            await self.keyring.flush()
            await self.limiter.close()
        except StoreUnavailableError as error:
            logger.warning("the last use of keys was not written: %s", error.message)

    def meter(self, admitted: Admitted) -> Meter:
        """What counts a request's use of its key's limits."""
        key_id = admitted.caller.key_id
        if key_id is None or not admitted.limits:
            return UNMETERED
        return Meter(self.limiter, key_id, admitted.limits)


async def open_gatekeeper(store: Store, refresh_s: float) -> Gatekeeper:
    """A gatekeeper that has read the keys once."""
    keyring = Keyring(store.access, refresh_s)
    await keyring.refresh()
    return Gatekeeper(keyring, limiter_of(store))
