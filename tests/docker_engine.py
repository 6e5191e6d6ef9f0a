"""Docker for tests: commands that fail loudly, and Compose projects of their own.

Tests that need an engine carry the marker `docker`, which the ordinary run leaves out; `make
test-docker` builds the images and runs them. A test that was selected never skips for want of one.
"""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "docker"
VERSION = "0.1.0"
PATIENCE_S = 600.0
"""Longest time that one command, or the start of one service, may take."""


def image(name: str) -> str:
    """The tag of one of our images."""
    return f"bondserve/{name}:{VERSION}"


def docker(
    *arguments: str, check: bool = True, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `docker`; a command that fails fails the test, with what it said."""
    ran = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, **(environ or {})},
    )
    if check and ran.returncode:
        said = f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
        pytest.fail(f"docker {' '.join(arguments)}: {said}", pytrace=False)
    return ran


def inspect(what: str) -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    return json.loads(docker("inspect", what).stdout)[0]


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return once a condition holds; fail the test if it never does."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s:.0f} s in vain: {what}")
        time.sleep(0.5)


@dataclass
class Project:
    """One Compose project on ports and names of its own; `close` leaves nothing behind."""

    files: Sequence[Path]
    settings: dict[str, str]
    name: str = field(default_factory=lambda: f"bondserve-test-{secrets.token_hex(4)}")

    @property
    def environ(self) -> dict[str, str]:
        """What tells Compose the project's name and its settings."""
        return {**self.settings, "COMPOSE_PROJECT_NAME": self.name}

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` on this project."""
        named = [word for file in self.files for word in ("-f", str(file))]
        return docker("compose", *named, *arguments, check=check, environ=self.environ)

    def container(self, service: str) -> str:
        """The id of the service's container, also of one that has ended."""
        labels = (f"project={self.name}", f"service={service}")
        filters = [word for it in labels for word in ("--filter", f"label=com.docker.compose.{it}")]
        [found] = docker("ps", "--all", "--quiet", *filters).stdout.split()
        return found

    def health(self, service: str) -> str:
        """`starting`, `healthy` or `unhealthy`."""
        return str(inspect(self.container(service))["State"]["Health"]["Status"])

    def until_healthy(self, *services: str) -> None:
        """Wait until the health checks of the services succeed."""
        for service in services:
            until(f"{service} is healthy", lambda it=service: self.health(it) == "healthy")

    def logs(self, service: str) -> str:
        """Everything that the service wrote."""
        ran = docker("logs", self.container(service))
        return ran.stdout + ran.stderr

    def close(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1", check=False)
