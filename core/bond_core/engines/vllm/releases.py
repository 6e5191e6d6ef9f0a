"""Which releases of vLLM may swap adapters under load."""

import re

OLDEST_SAFE = (0, 32)
"""Before the fix of vLLM's issue 47724 (reproduced on 0.22.1 and 0.24.0) a request in flight could
be answered with another version's weights after a load. 0.32 is the oldest release on which this
project's tests of swapping under load have run."""


def release_of(version: str) -> tuple[int, ...]:
    """(0, 32, 0) for `0.32.0`; what follows the numbers is left out, and no numbers give ()."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def why_unsafe(version: str) -> str:
    """Why a release must not serve adapters; empty if it may.

    A build from source (`0.0.0.dev0`, `dev`) says nothing of its age and is taken at its word.
    """
    if not version:
        return "vLLM does not say which release it is: let its route /version through"
    release = release_of(version)
    if not any(release) or release >= OLDEST_SAFE:
        return ""
    oldest = ".".join(map(str, OLDEST_SAFE))
    return (
        f"vLLM {version} is older than {oldest}: after an adapter is loaded, a request in flight "
        f"may be answered with another version's weights (vLLM issue 47724); run {oldest} or later"
    )
