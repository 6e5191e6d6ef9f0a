"""Which policy versions a fleet serves, and by which names its servers know them."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from bond_core.engines.base import Check
from bond_core.engines.vllm.adapters import Adapter, AdapterFanOut, adapter_of, served_path
from bond_core.engines.vllm.connection import NOT_FOUND, RefusedError
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import AdapterError, UnknownVersionError
from bond_core.types import REFERENCE_VERSION

logger = logging.getLogger(__name__)

TRAINING_SUFFIX = "-training"
"""Of the names that a trainer gives adapters: what it drops stays loaded for the gateways."""


class ServedVersions:
    """The versions that requests may name; one load, drop or restore at a time."""

    def __init__(
        self,
        fan_out: AdapterFanOut,
        *,
        max_adapters: int,
        adapters_dir: Path | None,
        adapters_path: Path | None,
        background: bool,
    ) -> None:
        """See `VllmEngine` for `adapters_dir` and `background`; the servers see the former at
        `adapters_path`, if that is not None."""
        self.base_name = ""
        """By which the servers know the base model."""
        self._fan_out = fan_out
        self._max_adapters = max_adapters
        self._adapters_dir = adapters_dir
        self._adapters_path = adapters_path
        self._suffix = TRAINING_SUFFIX if background else ""
        self._adapters: dict[str, Adapter | None] = {REFERENCE_VERSION: None}
        """None stands for the base model itself."""
        self._changing = asyncio.Lock()

    def names(self) -> list[str]:
        """The versions, the reference first."""
        return list(self._adapters)

    def check(self, version: str) -> None:
        """Raise `UnknownVersionError` for one that is not served."""
        if version not in self._adapters:
            raise UnknownVersionError(
                f"policy version {version!r} is not loaded; loaded are {', '.join(self._adapters)}"
            )

    def name_of(self, version: str) -> str:
        """What to ask the servers for. Raises `UnknownVersionError`."""
        self.check(version)
        adapter = self._adapters[version]
        return self.base_name if adapter is None else adapter.name

    def adapter(self, version: str, path: Path, check: Check | None) -> Adapter:
        """A version in a directory, as the servers would know it. Raises `AdapterError`."""
        there = served_path(path, self._adapters_dir, self._adapters_path)
        return adapter_of(version, path, there, check, suffix=self._suffix)

    def refer_to(self, zero: Adapter) -> None:
        """Serve the reference through an adapter of zeros, which the servers hold already."""
        self._adapters[REFERENCE_VERSION] = zero

    async def load(self, version: str, path: Path, check: Check | None) -> None:
        """Raises `AdapterError` naming the server that refuses it, and why."""
        async with self._changing:
            if version in self._adapters:
                raise AdapterError(f"a version {version!r} is loaded already: give a new name")
            if len(self._adapters) > self._max_adapters:
                raise AdapterError(
                    f"{self._max_adapters} adapters are loaded, the most that engine."
                    "max_adapters allows: drop one or raise it"
                )
            adapter = await asyncio.to_thread(self.adapter, version, path, check)
            await self._fan_out.load(adapter)
            self._adapters[version] = adapter

    async def drop(self, version: str) -> None:
        """Raises `UnknownVersionError`, and `AdapterError` for the reference."""
        if version == REFERENCE_VERSION:
            raise AdapterError(f"{REFERENCE_VERSION} is the reference and cannot be dropped")
        async with self._changing:
            self.check(version)
            adapter = self._adapters.pop(version)
            if adapter is not None:
                await self._fan_out.unload(adapter)

    @asynccontextmanager
    async def restored(self, replica: Replica) -> AsyncGenerator[None]:
        """Give a replica that came back every version; none is loaded until the block ends, so that
        a replica that is admitted in it misses none."""
        async with self._changing:
            adapters = [a for a in self._adapters.values() if a is not None]
            await self._fan_out.restore(replica, adapters)
            yield

    async def bring_back(self, replica: Replica, version: str, error: RefusedError) -> None:
        """Load a version that a server lacks. Raises `error` if that is not what it says."""
        adapter = self._adapters.get(version)
        if error.status != NOT_FOUND or adapter is None:
            raise error
        logger.warning("%s lacks %s; loading it again", replica.url, version)
        await self._fan_out.load_on(replica, adapter)
