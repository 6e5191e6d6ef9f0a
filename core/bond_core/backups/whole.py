"""Whether a store and a folder of adapters belong together."""

from collections.abc import Mapping
from pathlib import Path

from bond_core.adapters import adapter_path, verify_adapter
from bond_core.errors import AdapterError
from bond_core.types import PolicyState

_DISPENSABLE = frozenset({PolicyState.REJECTED, PolicyState.ROLLED_BACK})


def needed_versions(states: Mapping[str, PolicyState]) -> list[str]:
    """The versions whose adapters a store needs.

    Nobody serves or builds on a rejected one, and the trainer removes all but the newest of them.
    One that was rolled back is so for good, most likely because its adapter is lost.
    """
    return [version for version, state in states.items() if state not in _DISPENSABLE]


def missing_adapters(states: Mapping[str, PolicyState], adapters_dir: Path) -> dict[str, str]:
    """What is wrong with each needed version that could not be served, by its name."""
    wrong: dict[str, str] = {}
    for version in needed_versions(states):
        try:
            verify_adapter(adapter_path(adapters_dir, version))
        except AdapterError as error:
            wrong[version] = error.message
    return wrong
