"""API keys and session tokens as text: made, taken apart, hashed.

A key is `sk-bond-<id>-<secret>`: 12 hexadecimal digits that may be shown, and 256 random bits that
are shown once. Kept is the SHA-256 of the whole key. A slow, salted hash protects secrets that
people think up, because those can be guessed; 256 random bits cannot, and a hash that takes
milliseconds would be paid by every request.
"""

import hashlib
import re
import secrets

KEY_PREFIX = "sk-bond-"
_KEY = re.compile(r"sk-bond-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{43}")


def new_key_id() -> str:
    """12 random hexadecimal digits."""
    return secrets.token_hex(6)


def new_key(key_id: str) -> str:
    """A key of this id with a fresh secret."""
    return f"{KEY_PREFIX}{key_id}-{secrets.token_urlsafe(32)}"


def key_id_of(key: str) -> str | None:
    """The id within a key; None for text that is no key."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


def new_session_token() -> str:
    """256 random bits for a cookie."""
    return secrets.token_urlsafe(32)


def is_session_token(text: str) -> bool:
    """Whether the text has the form of a session token."""
    return _SESSION.fullmatch(text) is not None


def digest_of(secret: str) -> str:
    """What is kept of a key or of a session token: its SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()
