"""Sampling, arms, the gateway's socket and the store."""

from typing import Literal

from pydantic import Field, model_validator

from bond_core.config.base import Section
from bond_core.config.retention import RetentionConfig
from bond_core.types import SamplingParams


class SamplingConfig(Section):
    """The standard distribution: what is trained, evaluated and measured.

    Requests may ask for other settings; they are served and logged, and stay out of training and
    of KL.
    """

    temperature: float = Field(default=1.0, ge=0.01, le=2)
    """Divides the logits."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Mass of the nucleus; 1 keeps the whole vocabulary."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer, and the default of requests that do not say."""

    def params(self) -> SamplingParams:
        """The standard sampling parameters."""
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p
        )


class SplitConfig(Section):
    """Shares of the traffic on the plain model name; they need not sum to one."""

    reference: float = Field(default=0.0, ge=0)
    """One sample of the reference."""
    bon: float = Field(default=0.5, ge=0)
    """Best-of-N of the reference."""
    distilled: float = Field(default=0.5, ge=0)
    """One sample of the active policy version."""

    @model_validator(mode="after")
    def _some_share(self) -> "SplitConfig":
        if self.reference + self.bon + self.distilled <= 0:
            raise ValueError("no arm has a share: set at least one of reference, bon, distilled")
        return self


class ArmsConfig(Section):
    """The alternatives that answer a request."""

    split: SplitConfig = SplitConfig()
    best_of: int = Field(default=8, ge=1)
    """N of Best-of-N where a request does not say."""
    max_best_of: int = Field(default=64, ge=1)
    """Largest N that a request may ask for."""
    deadline_s: float | None = Field(default=None, gt=0)
    """Seconds from arrival at which the best of the candidates that have ended is returned, marked
    `deadline`, or a 504 if none has; a request may set its own. Without, all are waited for."""
    experiment: str = Field(default="bondserve", pattern=r"^[!-~]{1,128}$")
    """Names the assignment of units to arms, in rows and in `x-bond-experiment`; another name draws
    every unit's arm anew."""

    @model_validator(mode="after")
    def _default_within_limit(self) -> "ArmsConfig":
        if self.best_of > self.max_best_of:
            raise ValueError(f"best_of ({self.best_of}) is over max_best_of ({self.max_best_of})")
        return self


class ServerConfig(Section):
    """The gateway's socket and what it keeps."""

    host: str = "127.0.0.1"
    """Address to listen on; another than loopback needs API keys, or `access.allow_open`."""
    port: int = Field(default=8080, ge=0, le=65535)
    """0 takes a free port and prints it."""
    log_content: bool = True
    """Keep prompts and answers in the store; without, nothing can be learned from traffic."""
    train_on_traffic: bool = True
    """What an absent `store` field means: whether the trainer may learn from the row."""
    policy_poll_s: float = Field(default=0.5, gt=0)
    """How often the gateway looks for a changed alias and for challengers."""
    log_format: Literal["text", "json"] = "text"
    """Of the gateway's log on stderr: lines for people, or one JSON object per line."""
    access_log: bool = True
    """Log one line per request: method, route, status, milliseconds, arm; never what it says."""
    idempotency_wait_s: float = Field(default=10.0, ge=0)
    """How long a request waits for one that runs under the same `Idempotency-Key`."""
    shutdown_grace_s: float = Field(default=10.0, ge=0)
    """How long running requests may take to end after SIGTERM."""
    keep_alive_s: float = Field(default=5.0, gt=0)
    """Silence of a stream after which a comment is sent, so that no proxy closes it; none while the
    request waits in the queue."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """How long a client may read nothing of its stream before it is hung up on."""


class StoreConfig(Section):
    """Where rows are kept."""

    url: str = ""
    """Of the database, as postgresql://USER:PASSWORD@HOST/DATABASE; by default SQLite in the data
    directory."""
    durability: Literal["process", "power"] = "process"
    """`process` survives any death of ours; `power` the machine's, for an fsync per commit."""
    group_commit_rows: int = Field(default=256, ge=1)
    """Most rows that share one commit."""
    commit_timeout_s: float = Field(default=10.0, gt=0)
    """How long an answer waits for its row before it becomes an error."""
    queue_rows: int = Field(default=2048, ge=1)
    """Most rows that wait for a slow database; over it an answer becomes an error at once."""
    retention: RetentionConfig = RetentionConfig()
    redact: str = Field(default="", pattern=r"^(.+:[A-Za-z_]\w*)?$")
    """`path/to/file.py:function` or `package.module:function`, given the texts of a row (a list of
    strings) before it is stored; it returns what may be kept of each. Answers are sent as drawn."""
    redact_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that one call of it may take; after that, and after an error of its own, the row is
    kept without content."""
