"""Which policy versions this gateway serves, and which one `distilled` means.

A version is loaded, checked and probed before a request can reach it, and dropped only when none
uses it. The alias is one attribute that a request reads once: what it started with it ends with.
"""

import asyncio
import logging
from collections import Counter
from pathlib import Path

from bond_core.adapters import (
    Manifest,
    adapter_path,
    check_base,
    probe_adapter,
    verify_adapter,
)
from bond_core.engines import Check, Engine, TokenScorer
from bond_core.errors import (
    AdapterError,
    ConfigError,
    EngineUnavailableError,
    UnknownModelError,
)
from bond_core.store import Policies
from bond_core.store.records import PolicyRecord
from bond_core.types import REFERENCE_VERSION, PolicyState
from bond_server.metrics import Metrics

logger = logging.getLogger(__name__)

SERVABLE_STATES = frozenset(
    {PolicyState.CANARY, PolicyState.ACTIVE, PolicyState.RETIRED, PolicyState.ROLLED_BACK}
)
"""A challenger has not been probed yet, and a rejected version is not what it says it is."""


class PolicyRegistry:
    """The versions that the engine holds, and the alias."""

    def __init__(
        self,
        policies: Policies,
        engine: Engine,
        adapters_dir: Path,
        max_resident: int,
        metrics: Metrics,
    ) -> None:
        if max_resident < 2:
            raise ConfigError(
                "engine.max_adapters is 1: a new version is loaded beside the active one, so set "
                "it to 2 at least, or 3 to keep the previous one loaded as well"
            )
        self._policies = policies
        self._engine = engine
        self._adapters_dir = adapters_dir
        self._max_resident = max_resident
        self._metrics = metrics
        self._active = REFERENCE_VERSION
        self._previous = REFERENCE_VERSION
        self._resident: set[str] = set()
        self._in_use: Counter[str] = Counter()
        self._loading = asyncio.Lock()

    @property
    def active(self) -> str:
        """What `distilled` means now; the reference until the first promotion."""
        return self._active

    @property
    def previous(self) -> str:
        """What it meant before."""
        return self._previous

    def is_loaded(self, version: str) -> bool:
        """Whether the engine holds a version."""
        return version == REFERENCE_VERSION or version in self._resident

    @property
    def why_none_can_be_loaded(self) -> str:
        """What the engine lacks to serve versions; empty if nothing."""
        info = self._engine.info
        return "" if info.adapters else info.no_adapters_because

    def using(self, version: str) -> "_Use":
        """Hold a version while a request draws from it; loads it if it was dropped meanwhile."""
        return _Use(self, self._in_use, version)

    async def require(self, version: str) -> None:
        """Make sure that a version asked for by name can be served.

        Raises `UnknownModelError` that says what exists, or why this one is not served.
        """
        if self.is_loaded(version):
            return
        record = await self._policies.get(version)
        if record is None:
            served = ", ".join(r.version for r in await self.servable()) or "none"
            raise UnknownModelError(
                f"there is no policy version {version}; versions served: {served}"
            )
        if record.state not in SERVABLE_STATES:
            reason = f": {record.reason}" if record.reason else ""
            raise UnknownModelError(
                f"policy version {version} is not served, its state is {record.state.value}{reason}"
            )
        try:
            await self.load(version)
        except AdapterError as error:
            raise UnknownModelError(
                f"policy version {version} cannot be loaded: {error.message}"
            ) from error

    async def servable(self) -> list[PolicyRecord]:
        """Versions that a model id may name, oldest first, without the reference."""
        return [
            record
            for record in await self._policies.all()
            if record.state in SERVABLE_STATES and record.version != REFERENCE_VERSION
        ]

    async def load(self, version: str) -> None:
        """Verify, load and probe a version, unless it is there already.

        Raises `AdapterError` (`ProbeError`) if it is not what it should be; nothing stays loaded.
        """
        async with self._loading:
            if self.is_loaded(version):
                return
            if because := self.why_none_can_be_loaded:
                raise EngineUnavailableError(f"{version} cannot be loaded: {because}")
            path = adapter_path(self._adapters_dir, version)
            manifest = await asyncio.to_thread(verify_adapter, path)
            if manifest.tokenizer_sha256 != self._engine.info.tokenizer_sha256:
                raise AdapterError(
                    f"{path} was trained with another tokenizer or chat template than the "
                    f"engine's {self._engine.info.base_model}"
                )
            check_base(manifest, self._engine.info.base_revision)
            await self._make_room()
            await self._engine.load_adapter(version, path, self._probe(manifest))
            self._resident.add(version)
            self._show()

    def _probe(self, manifest: Manifest) -> Check:
        noise_nats = self._engine.info.logprob_noise_nats

        async def probe(where: TokenScorer) -> None:
            report = await probe_adapter(where, manifest, noise_nats)
            logger.info(
                "loaded %s: %.3g nats from its manifest, %.3g from its %s",
                report.version, report.distance, report.distance_to_nearest, report.nearest,
            )  # fmt: skip

        return probe

    def switch(self, version: str) -> None:
        """Let `distilled` mean a loaded version from now on."""
        if version == self._active:
            return
        self._previous, self._active = self._active, version
        self._show()
        logger.info("distilled is now %s, it was %s", self._active, self._previous)

    async def follow(self) -> None:
        """Make the store's alias this gateway's, once its version is loaded."""
        wanted = await self._policies.active()
        if wanted != self._active:
            await self.load(wanted)
            self.switch(wanted)

    async def _make_room(self) -> None:
        """Drop the oldest versions that nothing uses; the previous one only if no other can go."""
        while len(self._resident) >= self._max_resident:
            free = [v for v in self._resident if v != self._active and not self._in_use[v]]
            if not free:
                raise EngineUnavailableError(
                    f"the engine holds {len(self._resident)} versions and all are in use; try "
                    "again, or raise engine.max_adapters"
                )
            spare = [v for v in free if v != self._previous]
            victim = min(spare or free, key=version_number)
            self._resident.discard(victim)
            self._show()
            # a caller that goes away here must not leave the engine with what is not counted
            await asyncio.shield(self._engine.drop_adapter(victim))
            logger.info("dropped %s from the engine", victim)

    def _show(self) -> None:
        info = self._metrics.policies.adapter_info
        info.clear()
        for version in {REFERENCE_VERSION, *self._resident}:
            roles = {self._previous: "previous", self._active: "active"}
            default = "reference" if version == REFERENCE_VERSION else "resident"
            info.labels(version, roles.get(version, default)).set(1)
        self._metrics.policies.active_version.set(version_number(self._active))


def version_number(version: str) -> int:
    """7 for `v0007`."""
    return int(version.removeprefix("v"))


class _Use:
    """A version that is not dropped in the meantime. A class, as a generator would cost each
    request several times as much."""

    __slots__ = ("_in_use", "_registry", "_version")

    def __init__(self, registry: PolicyRegistry, in_use: Counter[str], version: str) -> None:
        self._registry = registry
        self._in_use = in_use
        self._version = version

    async def __aenter__(self) -> None:
        self._in_use[self._version] += 1
        if self._registry.is_loaded(self._version):
            return
        try:
            await self._registry.load(self._version)
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._release()

    def _release(self) -> None:
        self._in_use[self._version] -= 1
        if not self._in_use[self._version]:
            del self._in_use[self._version]
