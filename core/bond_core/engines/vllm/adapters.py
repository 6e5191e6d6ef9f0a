"""Policy versions on every replica: all of them or none."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bond_core.engines.base import Check, TokenScorer
from bond_core.engines.vllm.connection import AwayError, RefusedError
from bond_core.engines.vllm.fleet import Fleet
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import AdapterError, EngineUnavailableError
from bond_core.types import REFERENCE_VERSION

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
LOAD_TIMEOUT_S = 60.0
"""Reading an adapter takes milliseconds on the disks that were measured; network disks are not
that fast."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A version as the servers know it."""

    version: str
    name: str
    """With a part of the weights' checksum: a name never means two contents, so that neither a
    stale cache nor another deployment's version of the same number can answer for it."""
    path: Path
    """Where this process sees it."""
    served_path: str
    """Where the servers see it."""
    check: Check | None


def adapter_of(
    version: str, path: Path, served_path: str, check: Check | None, *, suffix: str = ""
) -> Adapter:
    """The version as it is named on the servers; `suffix` keeps apart who loads and drops it.

    Raises `AdapterError` if a file of the directory is missing.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / file).is_file():
            raise AdapterError(f"{path / file} does not exist: {path} is no PEFT directory")
    with (path / WEIGHTS_FILE).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Adapter(version, f"{version}-{digest[:12]}{suffix}", path, served_path, check)


def served_path(path: Path, adapters_dir: Path | None, adapters_path: Path | None) -> str:
    """Where the servers see a directory, if they see `adapters_dir` as `adapters_path`."""
    resolved = path.resolve()
    if adapters_path is not None and adapters_dir is not None:
        root = adapters_dir.resolve()
        if resolved.is_relative_to(root):
            return str(adapters_path / resolved.relative_to(root))
    return str(resolved)


class AdapterFanOut:
    """Loads on all replicas that answer, or on none.

    A replica that is away does not hold a promotion up: it gets every version before it gets
    requests again.
    """

    def __init__(self, fleet: Fleet, scoring: Callable[[Replica, Adapter], TokenScorer]) -> None:
        self._fleet = fleet
        self._scoring = scoring

    async def load(self, adapter: Adapter) -> None:
        """Load and check on each replica. Raises `AdapterError` or what the check raises, after
        it has been undone everywhere."""
        ready = [replica for replica in self._fleet.replicas if replica.ready]
        if not ready:
            self._fleet.choose("")  # raises with every replica's reason
        outcomes = await asyncio.gather(
            *(self.load_on(replica, adapter) for replica in ready), return_exceptions=True
        )
        away = [o for o in outcomes if isinstance(o, AwayError)]
        failures = [o for o in outcomes if isinstance(o, BaseException) and o not in away]
        if failures or len(away) == len(ready):
            await self.unload(adapter)
            if failures:
                raise failures[0]
            raise EngineUnavailableError(away[0].message, away[0].loggable)
        for replica, outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, AwayError):
                replica.exclude(f"it did not load {adapter.version}: {outcome.loggable}")

    async def load_on(self, replica: Replica, adapter: Adapter) -> None:
        """Load and check on one replica."""
        try:
            await replica.load(adapter.name, adapter.served_path, LOAD_TIMEOUT_S)
        except RefusedError as error:
            raise AdapterError(_why_refused(replica, adapter, error)) from error
        if adapter.check is not None:
            try:
                await adapter.check(self._scoring(replica, adapter))
            except BaseException:
                await self._unload_from(replica, adapter)  # nothing may reach what is not it
                raise

    async def unload(self, adapter: Adapter) -> None:
        """Forget it everywhere; a replica that is away has forgotten it."""
        await asyncio.gather(*(self._unload_from(r, adapter) for r in self._fleet.replicas))

    async def restore(self, replica: Replica, adapters: Sequence[Adapter]) -> None:
        """Make a replica that came back hold these.

        A version that it cannot have is left out there, and its requests fail; that is no reason to
        lose the server for all others. Raises as `load_on` does for the reference, and
        `AwayError`.
        """
        held = await replica.names(LOAD_TIMEOUT_S)
        replica.adapters &= held
        for adapter in adapters:
            try:
                await self.load_on(replica, adapter)
            except AdapterError as error:
                if adapter.version == REFERENCE_VERSION:
                    raise
                logger.error("%s answers without %s: %s", replica.url, adapter.version, error)

    async def _unload_from(self, replica: Replica, adapter: Adapter) -> None:
        try:
            await replica.unload(adapter.name, LOAD_TIMEOUT_S)
        except (AwayError, RefusedError) as error:
            told = "%s was not unloaded from %s: %s"
            logger.warning(told, adapter.name, replica.url, error.loggable)


def _why_refused(replica: Replica, adapter: Adapter, error: RefusedError) -> str:
    if "No adapter found" in str(error):
        return (
            f"vLLM at {replica.url} does not see {adapter.served_path}: mount "
            f"{adapter.path.parent} there, or set engine.adapters_path to where it is mounted"
        )
    return f"vLLM at {replica.url} refuses {adapter.version}: {error}"
