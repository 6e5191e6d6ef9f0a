"""`bond serve`: the gateway alone, in this process."""

from typing import Annotated

import typer

from bond_cli.extras import needs
from bond_cli.failure import CONFIG_EXIT, CommandError, explains_failures
from bond_cli.lifeline import end_with_supervisor
from bond_cli.logs import log_to_stderr
from bond_cli.resolved import free_port
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
    read_target,
)
from bond_cli.vllm.plan import needs_servers


@explains_failures
def serve(
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
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Start the gateway alone."""
    if supervised:
        end_with_supervisor()
    target = Target(
        model=model, reward_model=reward_model, judge=judge, config=config, data_dir=data_dir,
        host=host, port=port, best_of=best_of, engine=engine, engine_url=engine_url,
    )  # fmt: skip
    resolved = read_target(target)
    log_to_stderr()
    if needs_servers(resolved):
        raise CommandError(
            "`bond serve` starts no vLLM servers: point --engine-url at some that run (`bond vllm "
            "--run` starts them), or use `bond up`, which does both",
            CONFIG_EXIT,
        )
    free_port(resolved.server.host, resolved.server.port)  # told as `bond up` tells it
    with needs("server,local", "serve"):
        from bond_server import serve as run_gateway
        from bond_server.logs import configure
    configure(resolved.server.log_format)
    run_gateway(resolved)
