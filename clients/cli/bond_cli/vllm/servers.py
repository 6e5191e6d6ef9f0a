"""vLLM servers as child processes: started, waited for, started again when they die."""

import asyncio
from collections.abc import Mapping, Sequence

from bond_cli.child import Child, OnLine
from bond_cli.failure import CommandError
from bond_cli.guard import guarded
from bond_cli.kept import Backoff, Ended, KeptChild
from bond_cli.ready import until_ready
from bond_cli.vllm.printing import server_url
from bond_cli.vllm.settings import ServerCommand

_GRACE_S = 15.0
"""A server that has not ended so long after SIGTERM is killed."""


def child_name(server: ServerCommand) -> str:
    """What the server's lines and log file are named by."""
    return f"vllm-{server.role}"


class VllmServers:
    """The servers of one deployment. One that dies after it once answered is started again."""

    def __init__(
        self,
        servers: Sequence[ServerCommand],
        on_line: OnLine,
        environ: Mapping[str, str],
        backoff: Backoff | None = None,
    ) -> None:
        self.servers = tuple(servers)
        self._on_line = on_line
        self._children = [
            KeptChild(
                Child(
                    child_name(server),
                    guarded(server.argv, _GRACE_S),
                    on_line,
                    {**environ, **server.environ},
                ),
                on_line,
                grace_s=_GRACE_S + 5,  # the guard kills what is left of the server first
                backoff=backoff,
            )
            for server in self.servers
        ]
        self._keeping: list[asyncio.Task[Ended | None]] = []

    @property
    def restarts(self) -> int:
        """How often servers were started again."""
        return sum(kept.restarts for kept in self._children)

    async def start(self) -> None:
        """Start all, and return when all answer. Cancel it to give up, and call `stop`.

        Raises `CommandError` with the reason if one ends before it ever answered: it would end
        the same way again.
        """
        for kept in self._children:
            await kept.child.start()
        async with asyncio.TaskGroup() as group:
            waits = [
                group.create_task(self._answers(server, kept))
                for server, kept in zip(self.servers, self._children, strict=True)
            ]
            failed: CommandError | None = None
            for done in asyncio.as_completed(waits):
                failed = await done
                if failed is not None:
                    break
            if failed is not None:
                for wait in waits:
                    wait.cancel()
        if failed is not None:
            raise failed

    async def stop(self) -> None:
        """Stop all for good, side by side."""
        await asyncio.gather(*(kept.stop() for kept in self._children))
        if self._keeping:
            await asyncio.wait(self._keeping)

    async def _answers(self, server: ServerCommand, kept: KeptChild) -> CommandError | None:
        """Wait for the first answer; an error if the process ends before it."""
        url = server_url(server)
        ready = asyncio.create_task(until_ready(url, "/health"))
        ending = asyncio.create_task(kept.child.wait())
        try:
            await asyncio.wait({ready, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return CommandError(
                    f"the vLLM server of the {server.role} ended with exit code {ending.result()} "
                    f"before it answered: {kept.child.reason} (its lines say more)"
                )
        finally:
            ready.cancel()
            ending.cancel()
        self._on_line(kept.child.name, f"answers on {url}")
        self._keeping.append(asyncio.create_task(kept.keep(), name=kept.child.name))
        return None
