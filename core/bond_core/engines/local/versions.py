"""The versions that an engine serves, by name; asked and changed from any thread."""

import threading

from bond_core.engines.local.weights import PolicyWeights
from bond_core.errors import AdapterError, UnknownVersionError
from bond_core.types import REFERENCE_VERSION


class ServedVersions:
    """The reference, which is always there, and at most `max_adapters` others."""

    def __init__(self, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._weights = {REFERENCE_VERSION: PolicyWeights(REFERENCE_VERSION, {})}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """All of them, the reference first."""
        with self._lock:
            return list(self._weights)

    def weights(self, version: str) -> PolicyWeights:
        """What a request for a version is computed with. Raises `UnknownVersionError`."""
        with self._lock:
            weights = self._weights.get(version)
            if weights is None:
                raise self._unknown(version)
            return weights

    def check_room(self, version: str) -> None:
        """Raise `AdapterError` if the name is taken, or no more may be loaded."""
        with self._lock:
            self._check_room(version)

    def add(self, weights: PolicyWeights) -> None:
        """Serve a new version. Raises as `check_room` does."""
        with self._lock:
            self._check_room(weights.version)
            self._weights[weights.version] = weights

    def put(self, weights: PolicyWeights) -> None:
        """Serve a version, in place of an earlier one of that name if there is one."""
        with self._lock:
            self._weights[weights.version] = weights

    def drop(self, version: str) -> None:
        """Serve a version no more. Raises `AdapterError` for the reference, and
        `UnknownVersionError`."""
        if version == REFERENCE_VERSION:
            raise AdapterError(f"{REFERENCE_VERSION} is the reference and cannot be dropped")
        with self._lock:
            if self._weights.pop(version, None) is None:
                raise self._unknown(version)

    def _check_room(self, version: str) -> None:
        if version in self._weights:
            raise AdapterError(f"a version {version!r} is loaded already: give a new name")
        if len(self._weights) > self._max_adapters:
            raise AdapterError(
                f"{self._max_adapters} adapters are loaded, the most that engine."
                "max_adapters allows: drop one or raise it"
            )

    def _unknown(self, version: str) -> UnknownVersionError:
        return UnknownVersionError(
            f"policy version {version!r} is not loaded; loaded are {', '.join(self._weights)}"
        )
