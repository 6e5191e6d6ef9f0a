"""The whole service as processes: vLLM servers where they are ours, then gateway and trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bond_cli.child import OnLine, own_command
from bond_cli.failure import CONFIG_EXIT, CommandError
from bond_cli.kept import Ended
from bond_cli.resolved import child_environ, write_resolved
from bond_cli.supervisor import STOP_MARGIN_S, Supervisor
from bond_cli.vllm.interpreter import vllm_python
from bond_cli.vllm.plan import machine, needs_servers, plan_servers, pointed_at
from bond_cli.vllm.servers import VllmServers
from bond_cli.vllm.settings import ServerCommand

if TYPE_CHECKING:
    from bond_core.config import BondConfig


@dataclass(frozen=True, slots=True)
class Deployment:
    """A configuration, and the vLLM servers that are started for it."""

    asked: "BondConfig"
    """As flags, environment and file made it."""
    config: "BondConfig"
    """The same, pointing at the servers: what gateway and trainer read while they run."""
    servers: tuple[ServerCommand, ...] = ()


def deployment(config: "BondConfig", python: Path | None) -> Deployment:
    """The vLLM servers to start for a configuration: none if its engine is another or has URLs.

    The judge stays in the gateway's process: it is asked seldom. Raises `CommandError` if no
    interpreter has vLLM.
    """
    if not needs_servers(config):
        return Deployment(config, config)
    servers = plan_servers(config, machine(vllm_python(python), None), ("policy", "scorer"))
    return Deployment(config, pointed_at(config, servers), tuple(servers))


def refuse_untrainable(config: "BondConfig") -> None:
    """Raise `CommandError` if there is no folder of the model for the trainer to load."""
    if config.model.path is None:
        raise CommandError(
            f"the trainer needs the model's own files, and {config.model.served_name!r} is the "
            "name of a model on a server, since no such folder is here: name its folder, or add "
            "--no-train",
            CONFIG_EXIT,
        )


class Service:
    """Starts, watches and stops all processes of one deployment."""

    def __init__(self, deployed: Deployment, on_line: OnLine, *, train: bool) -> None:
        config = deployed.config
        path = str(write_resolved(config))
        environ = child_environ()
        self._deployed = deployed
        self._servers = VllmServers(deployed.servers, on_line, environ)
        self._supervisor = Supervisor(
            own_command("serve", "--config", path, "--supervised"),
            own_command("train", "--config", path, "--supervised") if train else None,
            on_line,
            environ=environ,
            grace_s=config.server.shutdown_grace_s + STOP_MARGIN_S,
        )

    async def start(self) -> None:
        """Start all; returns when the vLLM servers answer and the others have been started.

        Raises `CommandError` if a vLLM server cannot start; call `stop` then too.
        """
        await self._servers.start()
        await self._supervisor.start()

    async def wait(self) -> Ended:
        """Return when the service cannot go on; other processes may still run: call `stop`."""
        return await self._supervisor.wait()

    async def stop_trainer(self) -> None:
        """Stop the trainer for good."""
        await self._supervisor.stop_trainer()

    async def stop_serving(self) -> None:
        """Stop gateway and trainer, running requests first; the vLLM servers go on."""
        await self._supervisor.stop()

    async def stop(self) -> None:
        """Stop everything, the vLLM servers last: running requests need them."""
        await self._supervisor.stop()
        await self._servers.stop()
        if self._deployed.servers:  # `bond eval` reads the file later, when no server is there
            write_resolved(self._deployed.asked)
