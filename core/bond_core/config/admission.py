"""How much the gateway answers at once, and what happens to the rest."""

from pydantic import Field

from bond_core.config.base import Section
from bond_core.config.engine import EngineConfig, FakeEngineConfig, LocalEngineConfig

VLLM_ROWS = 256
"""Sequences that a vLLM server runs at once unless `--max-num-seqs` says otherwise."""
SPARE = 1.25
"""Requests keep their place while they are scored and committed; a quarter more than the engine
takes keeps it busy meanwhile."""


class AdmissionConfig(Section):
    """How many requests are answered at once, and how many may wait for it. All others are told to
    come back, at once. A request counts as many rows as candidates are drawn for it: those are what
    takes the engine's places and memory."""

    max_rows: int | None = Field(default=None, ge=1)
    """Rows in the making at once; a larger request runs alone. Default: a quarter more than the
    engine takes (`engine.max_rows`, `engine.capacity`, or 256 for each vLLM server)."""
    max_waiting_rows: int | None = Field(default=None, ge=0)
    """Rows of requests that wait, first come first served; while so many wait, more get 429.
    Default: half of `max_rows`, so that none waits much longer than half of what an answer
    takes."""
    max_wait_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Longest time that a request waits before it gets 429."""
    max_requests: int = Field(default=1000, ge=1)
    """HTTP requests of any kind in the process at once; more get 503 before they are read."""
    max_lag_s: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    """How late the event loop may be, with a tenth of `max_requests` in hand: beyond, work that is
    asked for gets 503 before it is read, so that what was accepted is answered."""

    def rows_at_once(self, engine: EngineConfig) -> int:
        """`max_rows`, or its default for this engine."""
        if self.max_rows is not None:
            return self.max_rows
        if isinstance(engine, LocalEngineConfig):
            rows = engine.max_rows
        elif isinstance(engine, FakeEngineConfig):
            rows = engine.capacity
        else:
            rows = VLLM_ROWS * max(1, len(engine.urls))
        return max(1, int(SPARE * rows))

    def rows_waiting(self, engine: EngineConfig) -> int:
        """`max_waiting_rows`, or its default for this engine."""
        if self.max_waiting_rows is not None:
            return self.max_waiting_rows
        return max(1, self.rows_at_once(engine) // 2)
