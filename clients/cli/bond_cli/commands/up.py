"""`bond up`: gateway and trainer together, supervised."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bond_cli.asking import API_KEY_VARIABLE
from bond_cli.claim import claimed
from bond_cli.failure import ERROR_PREFIX, CommandError, explains_failures
from bond_cli.foreground import print_line, stop_on_signals
from bond_cli.kept import Ended
from bond_cli.resolved import with_chosen_port
from bond_cli.service import Deployment, Service, deployment, refuse_untrainable
from bond_cli.supervisor import GATEWAY
from bond_cli.target import (
    BestOf,
    ConfigFile,
    DataDir,
    Engine,
    EngineUrl,
    Host,
    Judge,
    Model,
    Port,
    RewardModel,
    Target,
    VllmPython,
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
    engine: Engine = None,
    engine_url: EngineUrl = None,
    vllm_python: VllmPython = None,
    no_train: Annotated[bool, typer.Option("--no-train", help="Start the gateway alone.")] = False,
) -> None:
    """Start gateway and trainer together; without a model, on the demo world.

    Started again on the same data directory it goes on with the same log, policy and learner.
    """
    target = Target(
        model=model, reward_model=reward_model, judge=judge, config=config, data_dir=data_dir,
        host=host, port=port, best_of=best_of, engine=engine, engine_url=engine_url,
    )  # fmt: skip
    resolved = read_target(target)
    if not no_train:
        refuse_untrainable(resolved)
    deployed = deployment(with_chosen_port(resolved), vllm_python)
    with claimed(resolved.data_dir):
        ended = asyncio.run(_run(deployed, seed=target.is_demo, train=not no_train))
    if ended is not None:
        raise CommandError(ended.reason, ended.exit_code)


async def _run(deployed: Deployment, *, seed: bool, train: bool) -> Ended | None:
    config = deployed.config
    if seed:
        await _seed(config)
    service = Service(deployed, _print_line, train=train)
    what = ["vLLM servers, then"] if deployed.servers else []
    what.append("gateway and trainer" if train else "the gateway alone")
    print_line("bond", f"starting {' '.join(what)}; data in {config.data_dir.resolve()}")
    stopping = stop_on_signals()
    waiting = asyncio.create_task(stopping.wait())
    running = asyncio.create_task(_serve(config, service))
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        print_line("bond", "stopping")
        return None
    finally:
        waiting.cancel()
        running.cancel()
        await service.stop()


def _print_line(name: str, line: str) -> None:
    """Print a child's line; what ended the gateway is told at the end, where it is seen."""
    if name != GATEWAY or not line.startswith(ERROR_PREFIX):
        print_line(name, line)


async def _serve(config: "BondConfig", service: Service) -> Ended:
    await service.start()
    announcing = asyncio.create_task(_announce(config))
    try:
        return await service.wait()
    finally:
        announcing.cancel()


async def _seed(config: "BondConfig") -> None:
    from bond_demo.seeding import seed_log

    num_rows = await seed_log(config)
    if num_rows:
        print_line("bond", f"wrote {num_rows} rows of logged Best-of-N answers into the log")


async def _announce(config: "BondConfig") -> None:
    from bond_cli.ready import base_url, until_ready
    from bond_client import AsyncClient, BondAccessError

    url = base_url(config.server.host, config.server.port)
    key = os.environ.get(API_KEY_VARIABLE)
    await until_ready(url)
    async with AsyncClient(url, api_key=key) as client:
        try:
            names = [model.id for model in await client.models()]
            with_key = key is not None
        except BondAccessError:  # the gateway has keys, and we have none: it answers all the same
            names = [config.model.served_name]
            with_key = True
    name = config.model.served_name
    lines = [
        "",
        f"  bondserve answers on {url}",
        f"  models: {', '.join(names)}",
        *([f"  key: the one in {API_KEY_VARIABLE}"] if with_key else []),
        "",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\",
        *([f'    -H "authorization: Bearer ${API_KEY_VARIABLE}" \\'] if with_key else []),
        f'    -d \'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
        f'  bond ask "Hello" --url {url}',
        f'  bond compare "Hello" --url {url}',
        "",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
