"""Engines: software that samples from a policy and scores tokens under it.

`build_engine` is the door. It imports an implementation only when the configuration asks for it,
so that a process without torch can still use the others.
"""

from pathlib import Path

from bond_core.config import EngineConfig, LocalEngineConfig, ModelConfig, VllmEngineConfig
from bond_core.engines.base import Check, Engine, EngineInfo, TokenScorer
from bond_core.errors import ModelLoadError

__all__ = ["Check", "Engine", "EngineInfo", "TokenScorer", "build_engine"]


def build_engine(
    config: EngineConfig,
    model: ModelConfig,
    *,
    adapters_dir: Path | None = None,
    background: bool = False,
) -> Engine:
    """The engine that `config` describes, not yet started.

    `adapters_dir` is where versions are kept, which a server of its own has to see as well.
    `background` asks servers that others use too for everything at low priority.
    Raises `ModelLoadError` with the command to run if the packages it needs are not installed.
    """
    if isinstance(config, LocalEngineConfig):
        try:
            from bond_core.engines.local import LocalEngine
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                f"the local engine needs the package {error.name!r}, which is not installed: "
                "run  pip install 'bondserve[local]'"
            ) from error
        return LocalEngine(config, model)
    if isinstance(config, VllmEngineConfig):
        try:
            from bond_core.engines.vllm import VllmEngine
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                f"the vLLM engine needs the package {error.name!r}, which is not installed: "
                "run  pip install 'bondserve[vllm]'"
            ) from error
        return VllmEngine(config, model, adapters_dir=adapters_dir, background=background)
    from bond_core.engines.fake import FakeEngine

    return FakeEngine(config, model)
