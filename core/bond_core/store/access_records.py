"""API keys and sessions as plain values."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key may do; none implies another."""

    INFER = "infer"
    """Ask for answers, and look after those that were stored for the key itself."""
    READ = "read"
    """Look at models, policies, training, stored completions, metrics."""
    ADMIN = "admin"
    """Change something."""


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use; None is without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.concurrency is None
        )


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key as the store keeps it: everything but its secret."""

    id: str
    """The public part of `sk-bond-<id>-<secret>`."""
    name: str
    secret_sha256: str
    scopes: frozenset[Scope]
    created_at: float
    """Unix seconds, as all times here."""
    last_used_at: float | None = None
    """To within a minute."""
    expires_at: float | None = None
    revoked_at: float | None = None
    limits: KeyLimits = NO_LIMITS
    log_content: bool | None = None
    """Keep prompts and answers; None is the deployment's setting."""
    train: bool | None = None
    """False: never learn from it. True: unless the request says `store: false`. None is the
    deployment's setting."""

    def why_refused(self, now: float) -> str | None:
        """Why the key is not valid at a time; None if it is."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "has expired"
        return None


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session: a key that was exchanged for a cookie."""

    secret_sha256: str
    key_id: str
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class AccessSnapshot:
    """All keys and running sessions at one revision."""

    revision: int
    keys: tuple[ApiKey, ...]
    sessions: tuple[Session, ...]
