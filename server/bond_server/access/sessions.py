"""The browser's session: a cookie instead of a key, and a token against forged requests.

A session is a row of the store, so it survives a restart, holds on every gateway, and really ends
when it is ended or its key is revoked, which a signed cookie would not. The cookie is out of reach
of scripts (HttpOnly) and of other sites (SameSite=Strict).

Against requests forged by a page on the same site, unsafe methods need the header `x-csrf-token`.
Only a script that may read our answers can send it, and it needs no agreement about host names: a
check of Origin fails behind a proxy that changes Host. The token is derived from the cookie, so
nothing more has to be kept.
"""

import hashlib
import hmac

COOKIE = "bond_session"
CSRF_HEADER = "x-csrf-token"
UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def csrf_token_of(session_token: str) -> str:
    """The token that belongs to a cookie; the cookie cannot be told from it."""
    return hmac.new(session_token.encode(), b"csrf", hashlib.sha256).hexdigest()


def session_token_in(cookies: str) -> str | None:
    """The session's token in a `Cookie` header; None if there is none."""
    for pair in cookies.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return None
