"""Flags that say what to serve, and the configuration that they and a file make together."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bond_cli.extras import needs
from bond_cli.failure import CONFIG_EXIT, CommandError
from bond_cli.resolved import RESOLVED_NAME

if TYPE_CHECKING:
    from bond_core.config import BondConfig


class EngineName(StrEnum):
    """Engines that a flag can choose."""

    LOCAL = "local"
    VLLM = "vllm"


Model = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of the model, in Hugging Face format, or with --engine-url the servers' name "
        "for it; none serves the demo world."
    ),
]
RewardModel = Annotated[
    str | None,
    typer.Option(
        help="Folder of a reward model, the URL of one on a vLLM pooling server, or a function: "
        "path/to/file.py:function."
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(help="A second one, given in the same ways, which training never sees."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (YAML); flags go over it.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of log, adapters and checkpoints.", show_default=False)
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)]
Port = Annotated[
    int | None,
    typer.Option(help="Port to listen on; 0 takes a free one.", show_default=False),
]
BestOf = Annotated[int | None, typer.Option(help="N of Best-of-N.", show_default=False)]
Engine = Annotated[
    EngineName | None,
    typer.Option(
        help="local: this process, on the CPU. vllm: servers, started if no --engine-url is given.",
        show_default=False,
    ),
]
EngineUrl = Annotated[
    list[str] | None,
    typer.Option(
        help="URL of a vLLM server that runs already; repeat it, or separate several by commas.",
        show_default=False,
    ),
]
VllmPython = Annotated[
    Path | None,
    typer.Option(help="Python that has vLLM, for servers to start.", show_default=False),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the flags of `up`, `serve`, `train`, `demo` and `vllm` said."""

    model: Path | None = None
    reward_model: str | None = None
    judge: str | None = None
    config: Path | None = None
    data_dir: Path | None = None
    host: str | None = None
    port: int | None = None
    best_of: int | None = None
    engine: EngineName | None = None
    engine_url: Sequence[str] | None = None

    @property
    def engine_urls(self) -> tuple[str, ...]:
        """Every URL that was given, however it was separated, once."""
        given = ",".join(self.engine_url or ()).split(",")
        return tuple(dict.fromkeys(url.strip() for url in given if url.strip()))

    @property
    def is_demo(self) -> bool:
        """Neither a model nor a file was named: the demo world is served."""
        return self.model is None and self.config is None


def read_target(target: Target) -> "BondConfig":
    """The configuration of a run. Raises `ConfigError` or `CommandError` with exit code 2."""
    with needs("server,trainer", "up"):
        from bond_core.config import load_config
    _refuse_what_is_not_there(target)
    flags = flags_of(target)
    if target.is_demo:
        with needs("demo", "up"):
            from bond_demo.settings import demo_config
        flags = merge(demo_config(target.data_dir), flags)
    return load_config(target.config, flags)


def config_of_data(config: Path | None, data_dir: Path | None) -> "BondConfig":
    """The configuration that a data folder was made with, unless another is named."""
    written = data_dir / RESOLVED_NAME if data_dir is not None else None
    if config is None and written is not None and written.is_file():
        return read_target(Target(config=written, data_dir=data_dir))
    return read_target(Target(config=config, data_dir=data_dir))


def flags_of(target: Target) -> dict[str, Any]:
    """The flags that were given, nested as the configuration file is."""
    served = _served_name(target)
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": target.model} if served is None else {"name": served},
        "engine": _engine_flags(target, served),
        "arms": {"best_of": target.best_of},
        "server": {"host": target.host, "port": target.port},
    }
    flags: dict[str, Any] = {}
    for section, values in sections.items():
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            flags[section] = given
    if target.reward_model is not None:
        flags["scorer"] = scorer_flag(target.reward_model, "--reward-model")
    if target.judge is not None:
        flags["judge"] = scorer_flag(target.judge, "--judge")
    if target.data_dir is not None:
        flags["data_dir"] = target.data_dir
    return flags


def _served_name(target: Target) -> str | None:
    """MODEL if it is no folder but a name under which the named servers know their model."""
    if target.model is None or not target.engine_urls or target.model.expanduser().exists():
        return None
    return str(target.model)


def _engine_flags(target: Target, served: str | None) -> dict[str, Any]:
    if target.engine_urls:
        return {"type": "vllm", "urls": target.engine_urls, "model_name": served}
    return {"type": target.engine.value if target.engine is not None else None}


def scorer_flag(value: str, flag: str) -> dict[str, Any]:
    """The scorer section that a folder, a URL or a `file.py:function` stands for."""
    if value.startswith(("http://", "https://")):
        return {"type": "pooling", "url": value}
    path = Path(value).expanduser()
    if path.suffix == ".py" and path.is_file():
        names = functions_in(path) or ["reward"]
        options = " or ".join(f"{flag} {value}:{name}" for name in names)
        raise CommandError(
            f"{flag} {value} is a file: name its function, as {options}", CONFIG_EXIT
        )
    if _FUNCTION.fullmatch(value) and not path.exists():
        module, _, name = value.rpartition(":")
        if module.endswith(".py"):
            module = str(Path(module).expanduser().resolve())
        return {"type": "function", "function": f"{module}:{name}"}
    return {"type": "classifier", "path": str(path.resolve())}


def functions_in(file: Path) -> list[str]:
    """The public functions that a Python file defines; none if it cannot be read as Python."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_"
    ]


def merge(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, `over` winning; a section that names its `type` replaces the whole."""
    merged = dict(below)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and "type" not in value:
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _refuse_what_is_not_there(target: Target) -> None:
    if target.engine is EngineName.LOCAL and target.engine_urls:
        raise CommandError(
            "--engine local and --engine-url exclude each other: servers at URLs are vLLM's",
            CONFIG_EXIT,
        )
    if target.model is not None and target.reward_model is None and target.config is None:
        raise CommandError(
            f"no reward model for {target.model}: add --reward-model with a folder in Hugging "
            "Face format, the URL of a vLLM pooling server, or a function as "
            "path/to/file.py:function",
            CONFIG_EXIT,
        )
    if target.is_demo and target.reward_model is not None:
        raise CommandError(
            "--reward-model without a MODEL: name the model's folder too, or leave both out for "
            "the demo world",
            CONFIG_EXIT,
        )


_FUNCTION = re.compile(r".+:[A-Za-z_]\w*")
