"""`bond demo`: the whole loop on the demo world, with users, a live table and a report."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from bond_cli.claim import claimed
from bond_cli.extras import needs
from bond_cli.failure import CommandError, explains_failures
from bond_cli.kept import Ended
from bond_cli.ready import base_url, until_ready
from bond_cli.resolved import with_chosen_port
from bond_cli.service import Deployment, Service, deployment
from bond_cli.target import Engine, EngineUrl, Target, VllmPython, read_target


@explains_failures
def demo(
    duration: Annotated[
        float, typer.Option(help="Seconds of traffic; 0 goes on until Ctrl-C.", min=0)
    ] = 0,
    data_dir: Annotated[
        Path, typer.Option(help="Folder of log, adapters and checkpoints; a run goes on from it.")
    ] = Path("bond-demo-data"),
    results: Annotated[
        Path, typer.Option(help="Folder for report.json, frontier.png and table.txt.")
    ] = Path("demo-results"),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8080,
    rate: Annotated[
        float, typer.Option(help="Requests per second of all users together.", min=0.01)
    ] = 3.0,
    engine: Engine = None,
    engine_url: EngineUrl = None,
    vllm_python: VllmPython = None,
) -> None:
    """Serve, log, distil, swap and compare on a small world of its own, offline, in minutes."""
    started = time.monotonic()
    with needs("demo", "demo"):
        from bond_demo.driver import run_demo
        from bond_demo.settings import DemoSettings
    target = Target(data_dir=data_dir, port=port, engine=engine, engine_url=engine_url)
    deployed = deployment(with_chosen_port(read_target(target)), vllm_python)
    settings = DemoSettings(duration_s=duration or None, results_dir=results, rate_per_s=rate)

    async def run() -> None:
        service = ServiceProcesses(deployed)
        try:
            await run_demo(deployed.config, settings, service, started)
        finally:
            await service.stop_servers()

    with claimed(deployed.config.data_dir):
        asyncio.run(run())


class ServiceProcesses:
    """The demo's service as child processes; their output goes to log files."""

    def __init__(self, deployed: Deployment) -> None:
        config = deployed.config
        self._logs_dir = config.data_dir / "logs"
        self._logs_dir.mkdir(parents=True, exist_ok=True)
        self._service = Service(deployed, self._write_line, train=True)
        self.url = base_url(config.server.host, config.server.port)
        self._ending: asyncio.Task[Ended] | None = None

    async def start(self) -> None:
        """Start all; returns when the gateway is ready. Raises `CommandError` if it ends."""
        try:
            await self._service.start()
        except CommandError as error:
            raise CommandError(f"{error} (logs: {self._logs_dir})", error.exit_code) from None
        self._ending = asyncio.create_task(self._service.wait())
        ready = asyncio.create_task(until_ready(self.url))
        try:
            await asyncio.wait({ready, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        self.check()

    def check(self) -> None:
        """Raise `CommandError` with the reason if the service came to its end."""
        if self._ending is not None and self._ending.done():
            ended = self._ending.result()
            raise CommandError(f"{ended.reason} (logs: {self._logs_dir})", ended.exit_code or 1)

    async def stop_trainer(self) -> None:
        """Stop the trainer, which ends what it is evaluating, and leave the gateway running."""
        await self._service.stop_trainer()

    async def stop(self) -> None:
        """Stop gateway and trainer, running requests first. vLLM servers go on: the final
        evaluation samples from them."""
        if self._ending is not None:
            self._ending.cancel()
        await self._service.stop_serving()

    async def stop_servers(self) -> None:
        """Stop the rest too."""
        await self._service.stop()

    def _write_line(self, name: str, line: str) -> None:
        with (self._logs_dir / f"{name}.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
