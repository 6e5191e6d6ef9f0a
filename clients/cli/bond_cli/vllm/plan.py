"""Which servers a configuration needs, and the configuration that points at them."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bond_cli.failure import CommandError
from bond_cli.resolved import free_port
from bond_cli.vllm.interpreter import is_cpu_build
from bond_cli.vllm.model_folder import ModelFolder, read_model_folder
from bond_cli.vllm.printing import server_url
from bond_cli.vllm.settings import (
    Device,
    Lora,
    Place,
    Role,
    Served,
    ServerCommand,
    policy_server,
    reward_server,
)

if TYPE_CHECKING:
    from bond_core.config import BondConfig, ScorerConfig, VllmEngineConfig

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the servers run with."""

    python: str
    device: Device
    first_port: int = 0
    """Of the policy's server; the others follow. 0 takes free ones."""
    max_model_len: int | None = None
    """Over what the configuration asks for."""
    num_gpus: int = 0
    num_cpus: int = os.cpu_count() or 1


def machine(
    python: str, device: Device | None, first_port: int = 0, max_model_len: int | None = None
) -> Machine:
    """This machine. The device is the GPU if there is one and the interpreter's vLLM is for it."""
    num_gpus = _count_gpus()
    found: Device = "gpu" if num_gpus and not is_cpu_build(python) else "cpu"
    return Machine(
        python=python,
        device=device or found,
        first_port=first_port,
        max_model_len=max_model_len,
        num_gpus=num_gpus,
    )


def plan_servers(
    config: "BondConfig", on: Machine, roles: Sequence[Role] = ("policy", "scorer", "judge")
) -> list[ServerCommand]:
    """One server for the policy, and one for each scorer of `roles` that is a folder.

    Raises `CommandError` if the model has no folder.
    """
    if config.model.path is None:
        raise CommandError(
            "no model folder to start a vLLM server with: name MODEL or model.path, or point "
            "--engine-url at a server that runs already"
        )
    folders: list[tuple[Role, Path]] = [
        (role, path) for role in roles if (path := _folder(config, role)) is not None
    ]
    count = 1 + len(folders)
    policy = read_model_folder(config.model.path.resolve())
    length = on.max_model_len or _context_tokens(config, policy)
    engine = _engine(config)
    served = Served(
        path=policy.path,
        name=engine.model_name or config.model.served_name,
        dtype=config.model.dtype,
        max_model_len=length,
        kv_bytes_per_token=policy.kv_bytes_per_token(config.model.dtype),
        api_key=engine.api_key,
    )
    places = _places(on, count)
    servers = [policy_server(served, _lora(config, policy, engine), places[0])]
    for place, (role, path) in zip(places[1:], folders, strict=True):
        reward = _served_reward(config, role, read_model_folder(path.resolve()), length)
        servers.append(reward_server(role, reward, place))
    return servers


def pointed_at(config: "BondConfig", servers: Sequence[ServerCommand]) -> "BondConfig":
    """The configuration with the servers' URLs: the engine's, and scorers that become `pooling`."""
    from bond_core.config import PoolingScorerConfig

    values: dict[str, object] = {}
    for server in servers:
        url = server_url(server)
        if server.role == "policy":
            values["engine"] = _engine(config).model_copy(update={"urls": (url,)})
        else:
            values[server.role] = PoolingScorerConfig(url=url, path=server.model)
    return config.model_copy(update=values)


def needs_servers(config: "BondConfig") -> bool:
    """Whether the engine is vLLM and no server is named."""
    from bond_core.config import VllmEngineConfig

    return isinstance(config.engine, VllmEngineConfig) and not config.engine.urls


def _engine(config: "BondConfig") -> "VllmEngineConfig":
    from bond_core.config import VllmEngineConfig

    return config.engine if isinstance(config.engine, VllmEngineConfig) else VllmEngineConfig()


def _scorer(config: "BondConfig", role: Role) -> "ScorerConfig | None":
    return {"scorer": config.scorer, "judge": config.judge}.get(role)


def _folder(config: "BondConfig", role: Role) -> Path | None:
    """The reward model's folder; None for a function, or if there is no such scorer."""
    from bond_core.config import FunctionScorerConfig

    scorer = _scorer(config, role)
    return None if scorer is None or isinstance(scorer, FunctionScorerConfig) else scorer.path


def _served_reward(config: "BondConfig", role: Role, folder: ModelFolder, length: int) -> Served:
    from bond_core.config import ClassifierScorerConfig, PoolingScorerConfig

    scorer = _scorer(config, role)
    local = scorer if isinstance(scorer, ClassifierScorerConfig) else None
    asked = max(length, local.max_tokens if local is not None else 0)
    return Served(
        path=folder.path,
        name=folder.path.name,
        dtype=local.dtype if local is not None else config.model.dtype,
        max_model_len=min(asked, folder.context_tokens or asked),
        kv_bytes_per_token=folder.kv_bytes_per_token(config.model.dtype),
        api_key=scorer.api_key if isinstance(scorer, PoolingScorerConfig) else None,
    )


def _lora(config: "BondConfig", policy: ModelFolder, engine: "VllmEngineConfig") -> Lora:
    wanted = config.trainer.lora.target_modules
    if wanted == "all-linear":
        modules = policy.linear_modules()
    else:
        asked = [wanted] if isinstance(wanted, str) else wanted
        modules = sorted({name.rpartition(".")[2] for name in asked})
    return Lora(
        rank=config.trainer.lora.rank,
        max_adapters=engine.max_adapters,
        trained_here=not engine.training_urls and config.trainer.rollouts.engine != "own",
        reference_adapter=engine.reference_as == "adapter",
        modules=tuple(modules),
    )


def _context_tokens(config: "BondConfig", policy: ModelFolder) -> int:
    """What the embedded engine allows by default, or a trained prompt with its answer if that is
    longer; the model's own limit if that is smaller."""
    from bond_core.config import LocalEngineConfig

    trained = config.trainer.max_prompt_tokens + config.sampling.max_tokens
    wanted = max(LocalEngineConfig().max_context_tokens, trained)
    return min(wanted, policy.context_tokens or wanted)


def _places(on: Machine, count: int) -> list[Place]:
    """Places of `count` servers: ports that are free, and GPUs in turn."""
    gpus = max(1, on.num_gpus)
    return [
        Place(
            python=on.python,
            device=on.device,
            host=_HOST,
            port=port,
            num_servers=count,
            num_cpus=on.num_cpus,
            gpu=index % gpus,
            servers_on_gpu=len(range(index % gpus, count, gpus)),
        )
        for index, port in enumerate(_ports(on.first_port, count))
    ]


def _ports(first: int, count: int) -> list[int]:
    if first:
        return [first + index for index in range(count)]
    ports: set[int] = set()
    while len(ports) < count:  # the kernel may offer the same free one twice
        ports.add(free_port(_HOST, 0))
    return sorted(ports)


def _count_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
