"""`bond up`: gateway and trainer together, supervised."""

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bond_cli.child import own_command
from bond_cli.claim import claimed
from bond_cli.failure import CommandError, explains_failures
from bond_cli.resolved import child_environ, with_chosen_port, write_resolved
from bond_cli.supervisor import STOP_MARGIN_S, Ended, Supervisor
from bond_cli.target import (
    BestOf,
    ConfigFile,
    DataDir,
    EngineUrl,
    Host,
    Judge,
    Model,
    Port,
    RewardModel,
    Target,
    read_target,
)

if TYPE_CHECKING:
    from bond_core.config import BondConfig


@explains_failures
def up(
    model: Model = None,
    reward_model: RewardModel = None,
    judge: Judge = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    best_of: BestOf = None,
    engine_url: EngineUrl = None,
    no_train: Annotated[bool, typer.Option("--no-train", help="Start the gateway alone.")] = False,
) -> None:
    """Start gateway and trainer together; without a model, on the demo world.

    Started again on the same data directory it goes on with the same log, policy and learner.
    """
    target = Target(
        model=model, reward_model=reward_model, judge=judge, config=config, data_dir=data_dir,
        host=host, port=port, best_of=best_of, engine_url=engine_url,
    )  # fmt: skip
    resolved = with_chosen_port(read_target(target))
    with claimed(resolved.data_dir):
        ended = asyncio.run(_run(resolved, seed=target.is_demo, train=not no_train))
    if ended is not None:
        raise CommandError(ended.reason, ended.exit_code)


async def _run(config: "BondConfig", *, seed: bool, train: bool) -> Ended | None:
    if seed:
        await _seed(config)
    path = str(write_resolved(config))
    supervisor = Supervisor(
        own_command("serve", "--config", path, "--supervised"),
        own_command("train", "--config", path, "--supervised") if train else None,
        _print_line,
        environ=child_environ(),
        grace_s=config.server.shutdown_grace_s + STOP_MARGIN_S,
    )
    what = "gateway and trainer" if train else "the gateway alone"
    _print_line("bond", f"starting {what}; data in {config.data_dir.resolve()}")
    stopping = _stop_on_signals()
    await supervisor.start()
    announcing = asyncio.create_task(_announce(config))
    ending = asyncio.create_task(supervisor.wait())
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({ending, waiting}, return_when=asyncio.FIRST_COMPLETED)
    ended = ending.result() if ending.done() else None
    for task in (announcing, waiting, ending):
        task.cancel()
    if ended is None:
        _print_line("bond", "stopping")
    await supervisor.stop()
    return ended


async def _seed(config: "BondConfig") -> None:
    from bond_demo.seeding import seed_log

    num_rows = await seed_log(config)
    if num_rows:
        _print_line("bond", f"wrote {num_rows} rows of logged Best-of-N answers into the log")


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def _announce(config: "BondConfig") -> None:
    from bond_cli.ready import base_url, until_ready
    from bond_client import AsyncClient

    url = base_url(config.server.host, config.server.port)
    await until_ready(url)
    async with AsyncClient(url) as client:
        names = [model.id for model in await client.models()]
    name = config.model.served_name
    lines = [
        "",
        f"  bondserve answers on {url}",
        f"  models: {', '.join(names)}",
        "",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\",
        f'    -d \'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
        f'  bond ask "Hello" --url {url}',
        f'  bond compare "Hello" --url {url}',
        "",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _print_line(name: str, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the terminal went away; the service goes on
        sys.stdout.write(f"{name:>7} | {line}\n")
        sys.stdout.flush()
