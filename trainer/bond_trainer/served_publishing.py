"""Publishing to vLLM servers: the adapters as folders, loaded under names that were never used.

A publication is a folder in `.rollouts` beside the versions, where the servers see it, with a PEFT
folder for each adapter. It is written, loaded on every server or none, and only then does the
trainer sample from it; after that the publication before is dropped, and its folder deleted. It is
never a version: nothing of it is in the store, and no gateway hears of it.
"""

import asyncio
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from bond_core.engines.base import Engine
from bond_core.errors import AdapterError, BondError, ConfigError, EngineUnavailableError
from bond_core.types import REFERENCE_VERSION
from bond_trainer.lora import AdapterName, LoraPair
from bond_trainer.named_versions import NamedVersions

logger = logging.getLogger(__name__)

FOLDER = ".rollouts"
"""Of publications, in the folder of adapters."""


class PublicationError(BondError):
    """What was learned cannot be served: which server or file, why, what to do."""


class ServedPublisher:
    """Publishes `names` of a pair of adapters to servers; see `Publisher`.

    `engine` is what answers for them, a name at a time. The one before is loaded until the new one
    is, so that there is room for twice as many versions as names beside the reference; incumbents
    that an evaluation loaded are dropped to make it.
    """

    def __init__(
        self,
        servers: Engine,
        pair: LoraPair,
        names: Sequence[AdapterName],
        adapters_dir: Path,
    ) -> None:
        self.engine = NamedVersions(servers)
        self.served = True
        self._servers = servers
        self._pair = pair
        self._names = tuple(names)
        self._root = adapters_dir / FOLDER
        self._life = uuid.uuid4().hex[:8]
        self._number = 0
        self._folder: Path | None = None

    async def open(self) -> None:
        """Remove what a trainer that was killed left on disk and, where it is whole, on servers.

        Raises `ConfigError` if the servers take no adapters.
        """
        info = self._servers.info
        if not info.adapters:
            raise ConfigError(
                f"the servers cannot serve what is trained: {info.no_adapters_because}; or set "
                "trainer.rollouts.engine to own, to sample in the trainer's process"
            )
        for folder in sorted(self._root.glob("*")):
            for path in sorted(folder.glob("*")):
                await self._unload_leftover(_version_of(path), path)
            await asyncio.to_thread(shutil.rmtree, folder)

    async def publish(self) -> None:
        """See `Publisher.publish`."""
        self._number += 1
        folder = self._root / f"{self._life}-{self._number:06d}"
        try:
            await self._drop_all_but_published()
            await asyncio.to_thread(self._write, folder)
            fresh = await self._load(folder)
        except BaseException as error:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            if isinstance(error, AdapterError | OSError | SafetensorError):
                raise PublicationError(f"policy and anchor were not published: {error}") from error
            raise
        before, self._folder = self._folder, folder
        old = self.engine.behind()
        self.engine.point(fresh)
        if before is not None:
            for version in old.values():
                await self._drop(version)
            await asyncio.to_thread(shutil.rmtree, before, ignore_errors=True)

    async def close(self) -> None:
        """Leave nothing behind; servers that are away have nothing."""
        self.engine.point({})
        await self._drop_all_but_published()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    def _write(self, folder: Path) -> None:
        for name in self._names:
            self._pair.save(name, folder / name)

    async def _load(self, folder: Path) -> dict[str, str]:
        """Every adapter of a publication, or none; the version behind each name."""
        loaded: dict[str, str] = {}
        try:
            for name in self._names:
                version = _version_of(folder / name)
                await self._servers.load_adapter(version, folder / name)
                loaded[name] = version
        except BaseException:
            for version in loaded.values():
                await self._drop(version)
            raise
        return loaded

    async def _drop_all_but_published(self) -> None:
        kept = {REFERENCE_VERSION, *self.engine.behind().values()}
        for version in await self._servers.loaded_versions():
            if version not in kept:
                await self._drop(version)

    async def _drop(self, version: str) -> None:
        """Servers that do not answer have forgotten it when they come back."""
        try:
            await self._servers.drop_adapter(version)
        except EngineUnavailableError as error:
            logger.warning("%s was not dropped: %s", version, error)

    async def _unload_leftover(self, version: str, path: Path) -> None:
        """A name of another life is unknown to this engine until it is loaded, which it is at once
        where the servers still have it."""
        try:
            await self._servers.load_adapter(version, path)
            await self._servers.drop_adapter(version)
        except (AdapterError, EngineUnavailableError) as error:
            logger.info("%s of an earlier run was only deleted: %s", version, error)


def _version_of(path: Path) -> str:
    """A name that no other publication has, of this run or another."""
    return f"{path.name}-{path.parent.name}"
