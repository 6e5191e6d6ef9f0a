"""`bond vllm`: the commands that start vLLM servers as our use needs them, printed or run."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from bond_cli.failure import explains_failures
from bond_cli.foreground import print_line, stop_on_signals
from bond_cli.resolved import child_environ, free_port
from bond_cli.target import ConfigFile, DataDir, Judge, Model, RewardModel, Target, read_target
from bond_cli.vllm.interpreter import vllm_python, vllm_python_to_print
from bond_cli.vllm.plan import machine, plan_servers
from bond_cli.vllm.printing import pointing, script
from bond_cli.vllm.servers import VllmServers
from bond_cli.vllm.settings import ServerCommand

DEFAULT_PORT = 8101


@explains_failures
def vllm(
    model: Model = None,
    reward_model: RewardModel = None,
    judge: Judge = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    device: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(help="By default gpu where `nvidia-smi` finds one.", show_default=False),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port of the first server, the others follow; 0 takes free ones.")
    ] = DEFAULT_PORT,
    python: Annotated[
        Path | None,
        typer.Option(
            help="Python that has vLLM; by default this one, or ./.venv-vllm.", show_default=False
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Longest prompt with its answer.", show_default=False, min=8),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Start the servers, and again when one dies.")
    ] = False,
) -> None:
    """Print the commands that start vLLM servers for policy and reward models, or run them."""
    resolved = read_target(
        Target(
            model=model, reward_model=reward_model, judge=judge, config=config, data_dir=data_dir
        )
    )
    on = machine(
        (vllm_python if run else vllm_python_to_print)(python), device, port, max_model_len
    )
    servers = plan_servers(resolved, on)
    if run:
        for server in servers:
            free_port(server.host, server.port)
        asyncio.run(_run(servers))
        return
    comment = "".join(f"# {line}\n" if line else "#\n" for line in pointing(servers).splitlines())
    sys.stdout.write(f"{script(servers)}\n{comment}")


async def _run(servers: Sequence[ServerCommand]) -> None:
    stopping = stop_on_signals()
    waiting = asyncio.create_task(stopping.wait())
    kept = VllmServers(servers, print_line, child_environ())
    starting = asyncio.create_task(kept.start())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()  # raises why a server could not start
            sys.stdout.write(f"\n{pointing(servers)}\n")
            sys.stdout.flush()
        await waiting
        print_line("bond", "stopping")
    finally:
        waiting.cancel()
        starting.cancel()
        await kept.stop()
