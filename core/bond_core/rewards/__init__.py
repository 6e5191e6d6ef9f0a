"""Scorers: a raw number for each answer, higher is better.

`build_scorer` is the door. It imports an implementation only when the configuration asks for it.
"""

from bond_core.config import FunctionScorerConfig, PoolingScorerConfig, ScorerConfig
from bond_core.errors import ModelLoadError
from bond_core.rewards.base import Scorer
from bond_core.rewards.function import FunctionScorer

__all__ = ["Scorer", "build_scorer"]


def build_scorer(config: ScorerConfig) -> Scorer:
    """The scorer that `config` describes, not yet started.

    Raises `ModelLoadError` with the command to run if the packages it needs are not installed.
    """
    if isinstance(config, FunctionScorerConfig):
        return FunctionScorer(config)
    if isinstance(config, PoolingScorerConfig):
        try:
            from bond_core.rewards.pooling import PoolingScorer
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                f"the pooling scorer needs the package {error.name!r}, which is not installed: "
                "run  pip install 'bondserve[vllm]'"
            ) from error
        return PoolingScorer(config)
    try:
        from bond_core.rewards.classifier import ClassifierScorer
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"the classifier scorer needs the package {error.name!r}, which is not installed: "
            "run  pip install 'bondserve[local]'"
        ) from error
    return ClassifierScorer(config)
