"""Opening the engine that rollouts and evaluations come from, and what publishes to it."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bond_core.config import BondConfig, LocalEngineConfig, VllmEngineConfig
from bond_core.engines import build_engine
from bond_core.engines.base import Engine
from bond_core.engines.local import LocalEngine
from bond_core.errors import ConfigError
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair
from bond_trainer.publishing import OwnPublisher, Publisher
from bond_trainer.rollouts import samples_per_prompt
from bond_trainer.served_publishing import ServedPublisher


def are_served(config: BondConfig, prompts_file: Path | None) -> bool:
    """Whether rollouts come from servers (`trainer.rollouts.engine`)."""
    wanted = config.trainer.rollouts.engine
    if wanted == "auto":
        return isinstance(config.engine, VllmEngineConfig) and prompts_file is None
    return wanted == "served"


async def open_rollouts(
    stack: AsyncExitStack,
    config: BondConfig,
    pair: LoraPair,
    tokenizer: Any,
    base_revision: str,
    *,
    served: bool,
) -> tuple[Engine, Publisher]:
    """A started engine, and what brings `pair` to it; both are closed with the stack.

    Raises `ModelLoadError` if no server answers, `ConfigError` if the servers cannot serve what is
    trained.
    """
    if served:
        publisher = await _open_served(stack, config, pair)
        return publisher.engine, publisher
    limit = (
        config.engine.max_context_tokens
        if isinstance(config.engine, LocalEngineConfig)
        else config.trainer.max_prompt_tokens + config.sampling.max_tokens
    )
    engine = LocalEngine.over(
        pair.base,
        tokenizer,
        max_rows=config.trainer.rollout_rows,
        max_context_tokens=limit,
        name=config.model.served_name,
        base_revision=base_revision,
    )
    await engine.start()
    stack.push_async_callback(engine.close)
    return engine, OwnPublisher(engine, pair)


async def _open_served(
    stack: AsyncExitStack, config: BondConfig, pair: LoraPair
) -> ServedPublisher:
    names = published_names(config)
    room = config.engine.max_adapters if isinstance(config.engine, VllmEngineConfig) else 0
    if room < 2 * len(names):
        raise ConfigError(
            f"engine.max_adapters is {room}, and served rollouts need {2 * len(names)}: "
            f"{' and '.join(names)} as published, and anew; raise it"
        )
    servers = build_engine(
        config.engine, config.model, adapters_dir=config.adapters_dir, background=True
    )
    await servers.start()
    stack.push_async_callback(servers.close)
    publisher = ServedPublisher(servers, pair, names, config.adapters_dir)
    stack.push_async_callback(publisher.close)
    await publisher.open()
    return publisher


def published_names(config: BondConfig) -> tuple[AdapterName, ...]:
    """What rollouts are drawn from: without anchor samples the policy alone."""
    _, num_anchor_samples = samples_per_prompt(config.trainer.objective)
    return (POLICY, ANCHOR) if num_anchor_samples else (POLICY,)
