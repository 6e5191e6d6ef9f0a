"""Room for connections: each of them is a file descriptor, and the process has a limit of those."""

import logging
import resource

logger = logging.getLogger(__name__)

ENOUGH = 65_536
"""More is not asked for: where the hard limit is a billion, nothing is gained by it."""
_BESIDE = 200
"""Descriptors for the store, files, libraries, and connections that are between two requests."""


def needed_for(requests: int) -> int:
    """Descriptors that so many requests at once take: the client's connection and an engine's each,
    and what the process holds beside them."""
    return 2 * requests + _BESIDE


def make_room(requests: int) -> int:
    """Raise the soft limit as far as the hard one allows and is of use; returns what holds.

    Most shells and recent releases of Docker start processes with 1,024, although they may have
    more. A hard limit below `needed_for(requests)` is a warning, not an error: only under
    a load that would need them are connections refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needed_for(requests)
    unlimited = resource.RLIM_INFINITY
    wanted = max(needed, ENOUGH)
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and soft < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
        except (OSError, ValueError) as error:  # a kernel's bound below the hard limit
            logger.warning("the limit of open files stays at %d: %s", soft, error)
    if soft != unlimited and soft < needed:
        logger.warning(
            "this process may hold %d open files, and %d requests at once (admission.max_requests) "
            "may need %d: raise the limit (nofile), or lower admission.max_requests",
            soft,
            requests,
            needed,
        )
    return soft
