"""Opening everything that a training run needs, and closing it again."""

import asyncio
import fcntl
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from bond_core.adapters import remove_leftovers
from bond_core.config import BondConfig
from bond_core.engines.base import Engine
from bond_core.engines.local.loading import load_policy
from bond_core.errors import ConfigError, StoreUnavailableError
from bond_core.fingerprints import model_digest
from bond_core.holdout import Split
from bond_core.rewards.base import Scorer
from bond_core.store import Store, open_store
from bond_trainer.checkpoints import Checkpoints
from bond_trainer.draws import Scorers
from bond_trainer.held_out import HeldOutSource, held_out_openings
from bond_trainer.learner import Learner
from bond_trainer.lora import LoraPair
from bond_trainer.memory_report import report_memory
from bond_trainer.metrics_log import MetricsLog
from bond_trainer.opened_rollouts import are_served, open_rollouts
from bond_trainer.opened_scorers import open_scorer, open_scorers
from bond_trainer.promotion import Proposer
from bond_trainer.prompt_files import read_prompt_file
from bond_trainer.prompts import FilePrompts, LogPrompts, PromptSource, new_pool
from bond_trainer.publishing import Publisher
from bond_trainer.suite import Suite, read_suite, suite_scorer
from bond_trainer.teacher import load_active_teacher, open_teacher

logger = logging.getLogger(__name__)

LEASE = "trainer"
LEASE_TTL_S = 30.0
_AIM = ("type", "n", "teacher")
"""Of an objective: what is learned, as against how."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The open parts of one training run."""

    config: BondConfig
    run_id: str
    store: Store
    engine: Engine
    """Of rollouts and evaluations; its `policy` and `anchor` are those that `publisher` brought."""
    publisher: Publisher
    learner: Learner
    scorers: Scorers
    checkpoints: Checkpoints
    metrics: MetricsLog
    settings: Mapping[str, Any]
    """What a checkpoint has to have in common with this run."""
    source: PromptSource
    held_out: HeldOutSource
    proposer: Proposer
    openings: frozenset[str]
    """First messages that are never learned from."""
    ends_with_prompts: bool
    """Whether the prompts are a file, whose end ends the run."""


@asynccontextmanager
async def open_parts(
    config: BondConfig, prompts_file: Path | None, given: Mapping[str, Scorer] | None = None
) -> AsyncIterator[Parts]:
    """Open store, model, engine and scorers; the torch settings of the process are the trainer's.

    `given` are scorers at hand, by role, in place of the configured ones. Raises
    `ModelLoadError` or `ConfigError` naming what cannot be used, `AdapterError` if the
    version to build on was made for another base, and `StoreUnavailableError` if another trainer
    runs on the same store.
    """
    if prompts_file is not None:
        (await asyncio.to_thread(read_prompt_file, prompts_file)).say_left_out()
    # Batches come in many shapes, and oneDNN keeps a compiled kernel for each of the last 1024:
    # gigabytes, for a model of a few megabytes. It reads the variable at its first kernel.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    torch.set_num_threads(config.trainer.threads)
    async with AsyncExitStack() as stack:
        store = await open_store(
            config.store_url,
            config.store.durability,
            config.store.group_commit_rows,
            config.store.commit_timeout_s,
        )
        stack.push_async_callback(store.close)
        stack.enter_context(_locked(config.checkpoints_dir))
        run_id = _run_id(config.checkpoints_dir)
        await _take_lease(store, run_id)
        stack.push_async_callback(_give_back, store, run_id)
        remove_leftovers(config.adapters_dir)
        served = are_served(config, prompts_file)
        await asyncio.to_thread(report_memory, config, (given or {}).keys(), served=served)
        base_revision = await asyncio.to_thread(model_digest, config.model.folder)
        learner, tokenizer = _build_learner(config, served)
        if config.trainer.objective.type == "gkd" and config.trainer.objective.teacher == "active":
            await load_active_teacher(
                store, learner.pair, config.trainer.lora, base_revision, config.adapters_dir
            )
        engine, publisher = await open_rollouts(
            stack, config, learner.pair, tokenizer, base_revision, served=served
        )
        scorers = await open_scorers(stack, config, given)
        proposer = Proposer(
            config, store, engine, learner, scorers, await _open_suite(stack, config)
        )
        await proposer.check_incumbent()
        metrics = MetricsLog(config.metrics_dir, tensorboard=config.trainer.tensorboard)
        stack.callback(metrics.close)
        openings = held_out_openings(config)
        pool = new_pool(config.trainer, openings, from_log=prompts_file is None)
        yield Parts(
            config=config,
            run_id=run_id,
            store=store,
            engine=engine,
            publisher=publisher,
            learner=learner,
            scorers=scorers,
            checkpoints=Checkpoints(config.checkpoints_dir),
            metrics=metrics,
            settings=_settings(config, engine, prompts_file),
            source=LogPrompts(store, pool, run_id, config.trainer.claim_lease_s)
            if prompts_file is None
            else FilePrompts(prompts_file, engine, pool),
            held_out=HeldOutSource(config, store, Split.GATE, prompts_file),
            proposer=proposer,
            openings=openings,
            ends_with_prompts=prompts_file is not None,
        )


def _build_learner(config: BondConfig, served: bool) -> tuple[Learner, Any]:
    """The learner over the base model, and its tokenizer."""
    device = config.learner_device
    base, tokenizer = load_policy(config.model.folder, config.model.dtype, device)
    torch.manual_seed(config.trainer.seed)
    pair = LoraPair(base, config.trainer.lora)
    teacher = open_teacher(config, pair, tokenizer, device)
    return Learner(
        pair, config.trainer, config.sampling, teacher, served_rollouts=served
    ), tokenizer


async def _open_suite(stack: AsyncExitStack, config: BondConfig) -> Suite | None:
    suite = config.trainer.gate.suite
    if suite is None:
        return None
    return read_suite(config, suite, await open_scorer(stack, suite_scorer(suite)))


async def _take_lease(store: Store, run_id: str) -> None:
    if not await store.leases.acquire(LEASE, run_id, LEASE_TTL_S):
        raise StoreUnavailableError(
            "another trainer is running on this store: stop it, or wait "
            f"{LEASE_TTL_S:.0f} s if it was killed"
        )


async def _give_back(store: Store, run_id: str) -> None:
    """So that another trainer begins at once; a run that is done is so without it, too."""
    try:
        await store.leases.release(LEASE, run_id)
    except StoreUnavailableError as error:
        logger.warning("the trainer's lease is left to run out: %s", error.loggable)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second trainer off the same data directory; the lock ends with the process.

    The lease in the store keeps off trainers with another data directory on the same store.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another trainer uses {directory}: stop it, or give this one another data_dir"
            ) from None
        yield


def _run_id(directory: Path) -> str:
    """The run that the checkpoints belong to: a restarted trainer holds its own claims again."""
    file = directory / "run_id"
    if file.exists():
        return file.read_text().strip()
    run_id = f"run-{uuid.uuid4().hex[:12]}"
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(run_id + "\n")
    temporary.rename(file)
    return run_id


def _settings(config: BondConfig, engine: Engine, prompts_file: Path | None) -> dict[str, Any]:
    """What a checkpoint's state has a meaning under: the weights that it is a delta to and their
    type, the shape of its tensors, the law of its samples, the kind of its loss and what that aims
    at, the seed of its draws, and the file whose lines its place in the prompts counts.

    Rates, weights of terms, schedules, scorers and the gate may be changed between two runs.
    """
    objective = config.trainer.objective.model_dump(mode="json")
    return {
        "prompts": sha256(prompts_file.read_bytes()).hexdigest()[:12] if prompts_file else "log",
        "dtype": config.model.dtype,
        "model": engine.info.base_revision,
        "tokenizer": engine.info.tokenizer_sha256,
        "trainer": {
            "seed": config.trainer.seed,
            "lora": config.trainer.lora.model_dump(mode="json"),
            "objective": {key: objective[key] for key in _AIM if key in objective},
        },
        "sampling": config.sampling.model_dump(mode="json"),
    }
