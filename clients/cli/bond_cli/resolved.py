"""The configuration as the children read it: one file, written by the parent."""

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bond_cli.failure import CommandError

if TYPE_CHECKING:
    from bond_core.config import BondConfig

RESOLVED_NAME = "resolved.json"
_ENV_PREFIX = "BOND_"


def with_chosen_port(config: "BondConfig") -> "BondConfig":
    """The configuration with a port that is free now: port 0 is replaced by one.

    Raises `CommandError` if the port is in use, before any child has loaded a model.
    """
    port = free_port(config.server.host, config.server.port)
    server = config.server.model_copy(update={"port": port})
    return config.model_copy(update={"server": server})


def free_port(host: str, port: int) -> int:
    """The port that a listener on (host, port) would have. Raises `CommandError` if none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another with --port, or 0 for a free one"
        ) from error


def write_resolved(config: "BondConfig") -> Path:
    """Write the whole configuration, every default spelled out, into the data directory.

    Paths become absolute, so that the file means the same from any working directory. JSON is
    YAML, so `--config` reads it.
    """
    from bond_core.config.file import place_paths

    values = config.model_dump(mode="json")
    place_paths(values, Path.resolve)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    path = config.data_dir / RESOLVED_NAME
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)  # the store's URL and the API keys are secrets
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)
    return path.resolve()


def child_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: without our variables, which the file already holds and which
    would go over it, and with output that is not held back."""
    given = os.environ if environ is None else environ
    kept = {key: value for key, value in given.items() if not key.startswith(_ENV_PREFIX)}
    return kept | {"PYTHONUNBUFFERED": "1"}
