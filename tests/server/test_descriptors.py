"""The limit of open files is raised at the start, in a process of its own: it cannot be undone."""

import subprocess
import sys

import pytest

SCRIPT = """
import logging, resource, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
soft, hard, requests = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from bond_server.descriptors import make_room
print(make_room(requests), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def made_room(soft: int, hard: int, requests: int) -> list[str]:
    """What the process logged, and last what it returned beside the limits that hold then."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (soft, hard, requests))],
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


@pytest.mark.parametrize(
    ("soft", "hard", "requests", "holds"),
    [
        (1024, 4096, 1000, 4096),  # Docker's, with room above
        (4096, 4096, 1000, 4096),
        (2200, 2200, 1000, 2200),  # just enough
    ],
)
def test_the_limit_is_raised_to_the_hard_one(
    soft: int, hard: int, requests: int, holds: int
) -> None:
    assert made_room(soft, hard, requests) == [f"{holds} {holds} {hard}"]


def test_a_hard_limit_that_is_too_low_is_a_warning() -> None:
    warning, holds = made_room(256, 1024, 1000)
    assert warning == (
        "WARNING this process may hold 1024 open files, and 1000 requests at once "
        "(admission.max_requests) may need 2200: raise the limit (nofile), or lower "
        "admission.max_requests"
    )
    assert holds == "1024 1024 1024"
