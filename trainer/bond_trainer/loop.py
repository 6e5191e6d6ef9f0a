"""The training process: open, run, tell the store, end on a signal."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bond_core.config import BondConfig
from bond_core.errors import BondError
from bond_core.rewards import Scorer
from bond_core.store import TrainingRecord
from bond_trainer.causes import first_cause
from bond_trainer.opening import LEASE, LEASE_TTL_S, open_parts
from bond_trainer.progress import Progress
from bond_trainer.training_run import TrainingRun

logger = logging.getLogger(__name__)


async def run_training(
    config: BondConfig,
    *,
    prompts_file: Path | None = None,
    max_steps: int | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[TrainingRecord], None] | None = None,
    scorers: Mapping[str, Scorer] | None = None,
) -> None:
    """Train until `stop` is set, `max_steps` (or `trainer.max_steps`) is reached, or the prompts
    of the file are used up; SIGTERM and SIGINT set `stop`. Ends with a checkpoint. `scorers` stand
    in for the configured ones, by role (`scorer`, `judge`).

    Raises what made it fail, after the store was told.
    """
    os.nice(max(0, config.trainer.nice - os.nice(0)))
    stopping = stop or asyncio.Event()
    async with open_parts(config, prompts_file, scorers) as parts:
        progress = Progress(parts.store, parts.run_id, on_progress)
        run = TrainingRun(parts, progress, stopping, max_steps or config.trainer.max_steps)
        with _stopped_by_signals(stopping):
            try:
                async with progress.heartbeat(LEASE, LEASE_TTL_S):
                    await run.run()
            except Exception as error:
                cause = first_cause(error)
                if isinstance(cause, BondError):  # its message says all: what, why, what to do
                    logger.error("training failed at step %d: %s", run.step, cause)
                else:
                    logger.exception("training failed at step %d", run.step)
                progress.error = f"{type(cause).__name__}: {cause}"
                await progress.enter("failed")
                raise cause from (None if cause is error else error)
        await progress.enter("stopped")


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    try:
        for number in signals:
            loop.add_signal_handler(number, stop.set)
    except (RuntimeError, ValueError):  # not the main thread: the caller has `stop`
        yield
        return
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
