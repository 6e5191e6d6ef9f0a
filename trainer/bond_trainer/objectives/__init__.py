"""Objectives: pure functions from tensors to a loss and metrics, one file each."""

from collections.abc import Callable
from functools import partial

from bond_core.config import JBondConfig
from bond_core.errors import ConfigError
from bond_trainer.objectives.jbond import (
    JBondInputs,
    ObjectiveOutput,
    forward_weights,
    jbond_loss,
)
from bond_trainer.objectives.winners import winners_loss

__all__ = [
    "JBondInputs",
    "Objective",
    "ObjectiveOutput",
    "build_objective",
    "forward_weights",
    "jbond_loss",
    "winners_loss",
]

Objective = Callable[[JBondInputs], ObjectiveOutput]


def build_objective(config: JBondConfig) -> Objective:
    """The loss function that the configuration names.

    Raises `ConfigError` for settings that no batch can serve.
    """
    if config.baseline == "group" and config.num_policy_samples < 2:
        raise ConfigError(
            "trainer.objective: baseline 'group' needs num_policy_samples of at least 2, "
            f"not {config.num_policy_samples}; raise it, or take baseline 'batch'"
        )
    return partial(jbond_loss, config=config)
