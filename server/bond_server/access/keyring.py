"""Keys and sessions in memory: a request is checked without asking the store.

A loop looks every `access.refresh_s` whether the store's revision has changed and only then reads
keys and sessions again, so that a revocation takes effect within that time on every gateway.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from bond_core.errors import StoreUnavailableError
from bond_core.store import Access, AccessSnapshot, ApiKey
from bond_core.store.access_records import Session
from bond_core.store.access_secrets import digest_of, is_session_token, key_id_of
from bond_server.access.failures import InvalidKeyError

logger = logging.getLogger(__name__)

STALE_AFTER_S = 30.0
"""So long after the last look at the store nobody is let in: a key may have been revoked."""
TOUCH_EVERY_S = 30.0
_NOBODY = ApiKey(
    id="", name="", secret_sha256="0" * 64, scopes=frozenset(), created_at=0.0
)  # fmt: skip
"""Compared with where no key has the id, so that the time does not tell whether one has."""


class Keyring:
    """The keys and sessions that the store had at the last look."""

    def __init__(
        self,
        access: Access,
        refresh_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._refresh_s = refresh_s
        self._clock = clock
        self._revision: int | None = None
        self._keys: dict[str, ApiKey] = {}
        self._sessions: dict[str, Session] = {}
        self._looked_at = time.monotonic()
        self._touched_at = time.monotonic()
        self._used: dict[str, float] = {}
        self._complained = False

    @property
    def has_keys(self) -> bool:
        """Whether a key was ever made; revoking the last one closes the gateway, and does not
        open it."""
        return bool(self._keys)

    def key_of(self, text: str) -> ApiKey:
        """The valid key that a text is. Raises `InvalidKeyError` saying what is wrong."""
        self._refuse_if_stale()
        key_id = key_id_of(text)
        if key_id is None:
            raise InvalidKeyError(
                "what was sent as the key has not the form of one: send the header Authorization: "
                "Bearer sk-bond-…-…, as `bond keys create` printed it"
            )
        key = self._keys.get(key_id, _NOBODY)
        if not hmac.compare_digest(digest_of(text), key.secret_sha256):
            raise InvalidKeyError(
                f"the key sk-bond-{key_id}-… is not valid here; `bond keys list` shows those that "
                "are"
            )
        return self._valid(key)

    def session_of(self, token: str) -> tuple[ApiKey, Session]:
        """The running session of a cookie and its key. Raises `InvalidKeyError`."""
        self._refuse_if_stale()
        session = self._sessions.get(digest_of(token)) if is_session_token(token) else None
        if session is None or session.expires_at <= self._clock():
            raise InvalidKeyError("the session is over; send the key to POST /v1/session again")
        return self._valid(self._keys.get(session.key_id, _NOBODY)), session

    async def refresh(self) -> None:
        """Look at the store now. Raises `StoreUnavailableError`."""
        looked_at = time.monotonic()
        snapshot = await self._access.snapshot(self._revision)
        if looked_at < self._looked_at:
            return  # a later look was answered earlier: what this one found may be gone by now
        self._looked_at = looked_at
        if snapshot is not None:
            self._take(snapshot)

    async def run(self) -> None:
        """Look for ever; a store that does not answer is tried again."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.refresh()
                if time.monotonic() - self._touched_at >= TOUCH_EVERY_S:
                    await self.flush()
                self._complained = False
            except StoreUnavailableError as error:
                if not self._complained:
                    logger.error("the keys cannot be read: %s", error.message)
                self._complained = True
            except Exception:
                logger.exception("reading the keys failed; it goes on")

    async def flush(self) -> None:
        """Write down when keys were last used."""
        self._touched_at = time.monotonic()
        used, self._used = self._used, {}
        if used:
            await self._access.touch(used)

    def _take(self, snapshot: AccessSnapshot) -> None:
        self._revision = snapshot.revision
        # when it was last used is of no use here, and the dictionary is replaced in one step
        self._keys = {key.id: replace(key, last_used_at=None) for key in snapshot.keys}
        self._sessions = {session.secret_sha256: session for session in snapshot.sessions}

    def _valid(self, key: ApiKey) -> ApiKey:
        now = self._clock()
        reason = key.why_refused(now)
        if reason is not None:
            raise InvalidKeyError(f"the key sk-bond-{key.id}-… {reason}; ask for a new one")
        self._used[key.id] = now
        return key

    def _refuse_if_stale(self) -> None:
        stale_s = time.monotonic() - self._looked_at
        if stale_s > max(STALE_AFTER_S, 3 * self._refresh_s):
            raise StoreUnavailableError(
                f"the keys were last read {stale_s:.0f} s ago, and one may have been revoked "
                "since; check that the store answers"
            )
