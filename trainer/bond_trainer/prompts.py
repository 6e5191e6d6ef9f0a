"""Where training prompts come from: the log of served traffic, or a file."""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from bond_core.config import TrainerConfig
from bond_core.engines.base import Engine
from bond_core.errors import ConfigError
from bond_core.store import Store
from bond_core.store.records import CompletionRecord
from bond_trainer.curation import log_curator, plain_curator
from bond_trainer.prompt_files import read_prompt_file
from bond_trainer.prompt_pool import PromptPool, TrainingPrompt, named_prompts
from bond_trainer.winners import disqualification

LATE_ROWS = 1024
"""How far below the highest row seen a row may still appear: databases hand out row numbers
before they commit, so that rows become visible out of order."""
MIN_CLAIM = 256
LOOK_EVERY_S = 30.0
"""How long a prompt may be held whose row was deleted."""


class PromptSource(Protocol):
    """Prompts that may be learned from, each to be used a bounded number of times."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of every prompt seen, by reason."""
        ...

    @property
    def log_window(self) -> Mapping[str, int]:
        """What was seen, for a version's manifest: `rows`, and of the log `first_seq` and
        `last_seq`."""
        ...

    async def take(self, count: int) -> list[TrainingPrompt]:
        """`count` prompts, or none when there are not so many for now."""
        ...

    def state(self) -> dict[str, Any]:
        """For the checkpoint: JSON values."""
        ...

    async def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


def new_pool(
    config: TrainerConfig, held_out: Collection[str], *, from_log: bool = True
) -> PromptPool:
    """An empty pool with the configured limits; `held_out` are openings never to be learned.

    Rows of the log are also judged by who asked, when, and what is usual.
    """
    curator = log_curator(config, held_out) if from_log else plain_curator(config, held_out)
    return PromptPool(max_uses=config.max_epochs, curator=curator)


class LogPrompts:
    """Prompts of logged rows, claimed from the store.

    A claim is a lease that keeps two trainers apart; what was consumed is decided by the
    checkpoint alone. The store hands out rows of the training split with consent and standard
    sampling; the split is checked again here.
    """

    def __init__(self, store: Store, pool: PromptPool, holder: str, lease_s: float) -> None:
        self._store = store
        self._pool = pool
        self._holder = holder
        self._lease_s = lease_s
        self._looked_at = time.monotonic()
        self._seen: set[int] = set()
        self._lowest = 0
        """First row seen; 0 before there is one."""
        self._highest = 0

    @property
    def counts(self) -> Mapping[str, int]:
        return self._pool.counts

    @property
    def log_window(self) -> Mapping[str, int]:
        rows = self._pool.counts["rows"]
        if not rows:
            return {"rows": 0}
        return {"first_seq": self._lowest, "last_seq": self._highest, "rows": rows}

    async def take(self, count: int) -> list[TrainingPrompt]:
        """Fresh rows first; earlier ones again when training runs ahead of the traffic."""
        await self._drop_deleted()
        while self._pool.num_fresh < count and await self._claim(max(count, MIN_CLAIM)) > 0:
            pass
        return self._pool.take(count)

    def state(self) -> dict[str, Any]:
        return {
            "lowest": self._lowest,
            "highest": self._highest,
            "seen": sorted(self._seen),
            "pool": self._pool.state(),
        }

    async def restore(self, state: Mapping[str, Any]) -> None:
        self._lowest = int(state["lowest"])
        self._highest = int(state["highest"])
        self._seen = set(state["seen"])
        records = await self._store.completions.get_many(named_prompts(state["pool"]))
        prompts = {record.id: _of_record(record) for record in records if record.messages}
        self._pool.restore(state["pool"], prompts)

    async def _drop_deleted(self) -> None:
        """What was deleted from the log, or has outlived its content, is learned from no more."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        names = self._pool.names
        if gone := set(names) - await self._store.completions.with_content(names):
            self._pool.forget(gone)

    async def _claim(self, limit: int) -> int:
        records = await self._store.completions.claim(
            self._holder, limit, self._lease_s, after_seq=self._watermark, exclude=self._seen
        )
        for record in records:
            self._seen.add(record.seq)
            self._lowest = min(self._lowest or record.seq, record.seq)
            self._highest = max(self._highest, record.seq)
            self._pool.offer(_of_record(record), record.unit, record.created_at, record.key or "")
        self._seen = {seq for seq in self._seen if seq > self._watermark}
        return len(records)

    @property
    def _watermark(self) -> int:
        return max(0, self._highest - LATE_ROWS)


class FilePrompts:
    """Prompts of a JSON-lines file, for training without gateway and store."""

    def __init__(self, path: Path, engine: Engine, pool: PromptPool) -> None:
        self._path = path
        self._engine = engine
        self._pool = pool
        self._opened = False

    @property
    def counts(self) -> Mapping[str, int]:
        return self._pool.counts

    @property
    def log_window(self) -> Mapping[str, int]:
        return {"rows": self._pool.counts["rows"]}

    async def take(self, count: int) -> list[TrainingPrompt]:
        if not self._opened:
            for prompt in (await self._read()).values():
                self._pool.offer(prompt)
            self._pool.leave_out(read_prompt_file(self._path).left_out)
            self._opened = True
            if len(self._pool) < count:
                raise ConfigError(
                    f"{self._path} has {len(self._pool)} prompts to learn from "
                    f"({dict(self._pool.counts)}), fewer than trainer.prompts_per_step ({count}): "
                    "add prompts or lower it"
                )
        return self._pool.take(count)

    def state(self) -> dict[str, Any]:
        return {"opened": self._opened, "pool": self._pool.state()}

    async def restore(self, state: Mapping[str, Any]) -> None:
        if state["opened"]:
            self._pool.restore(state["pool"], await self._read())
            self._opened = True

    async def _read(self) -> dict[str, TrainingPrompt]:
        return {
            f"{line}": TrainingPrompt(
                f"{line}", messages, await self._engine.count_prompt_tokens(messages)
            )
            for line, messages in read_prompt_file(self._path).by_line.items()
        }


def _of_record(record: CompletionRecord) -> TrainingPrompt:
    """With its candidates, if they follow the law that Best-of-N assumes."""
    tokens = len(record.prompt_token_ids)
    drawn = len(record.candidates)
    qualifies = drawn > 1 and disqualification(record, drawn, tokens, frozenset()) is None
    logged = tuple(candidate.completion for candidate in record.candidates) if qualifies else ()
    return TrainingPrompt(record.id, record.messages, tokens, logged)
