"""The learner: one optimiser over the policy's LoRA factors, and the anchor that follows it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bond_core.config import (
    FixedBondConfig,
    GkdConfig,
    JBondConfig,
    ObjectiveConfig,
    SamplingConfig,
    TrainerConfig,
)
from bond_core.errors import ConfigError
from bond_trainer.logprobs import TokenRow, sequence_logprobs
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair
from bond_trainer.moving_average import update_moving_average
from bond_trainer.objectives import winners_loss
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.shared_prompts import Other, RowTerm
from bond_trainer.updates import UpdateContext, backward

Phase = Literal["winners", "rollouts"]
FINAL_RATE = 0.1
"""Share of the learning rate that is left where its linear decay ends."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one update did."""

    metrics: Mapping[str, float]
    train_s: float


class Learner:
    """Updates the policy from rollouts or from winners.

    With `served_rollouts` the policy's samples come from servers, whose law is not quite the
    learner's, and are corrected for that (`updates.importance`).

    The phases have their own optimisers: `winners` warms up and decays over a known number of
    steps, `rollouts` warms up and then stays, or decays over `learning_rate_decay_steps`.
    """

    def __init__(
        self,
        pair: LoraPair,
        config: TrainerConfig,
        sampling: SamplingConfig,
        teacher: Other | None = None,
        *,
        served_rollouts: bool = False,
    ) -> None:
        _check_objective(config.objective, teacher)
        if sampling.top_p != 1:
            raise ConfigError(
                f"sampling.top_p is {sampling.top_p}: the trainer learns the untruncated "
                "distribution, since a truncated one has no log-ratio outside its support; set "
                "it to 1, or serve without a trainer"
            )
        self.pair = pair
        self._config = config
        self._context = UpdateContext(
            pair,
            sampling.temperature,
            teacher,
            config.micro_batch_tokens,
            config.rollouts.max_importance_ratio if served_rollouts else None,
        )
        self.phase: Phase = "rollouts"
        self.phase_step = 0
        self.rollout_step = 0
        """Updates by rollouts in all: what the decay and hard anchor updates count by, also where
        a phase on winners comes between."""
        self._num_phase_steps = 0
        self._optimizer = self._new_optimizer(config.learning_rate)

    def begin(self, phase: Phase, num_steps: int = 0) -> None:
        """Start a phase with a fresh optimiser; `num_steps` is the length of `winners`."""
        self.phase = phase
        self.phase_step = 0
        self._num_phase_steps = num_steps
        self._optimizer = self._new_optimizer(self._base_rate())

    def learn_from_winners(self, winners: Sequence[TokenRow]) -> StepReport:
        """One update by the forward term on winners of Best-of-N; the anchor stays."""
        started = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        weight = torch.tensor(-1 / len(winners))
        values = self._context.backward(winners, [RowTerm(weight)] * len(winners))
        metrics = {**winners_loss(values.logprobs_R).metrics, "grad_norm": self._update()}
        return StepReport(metrics, time.perf_counter() - started)

    def learn_from_rollouts(self, groups: Sequence[RolloutGroup]) -> StepReport:
        """One update by the objective, then the anchor's.

        Raises `ScoringError` for rewards that are not finite.
        """
        started = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        metrics = backward(self._context, groups, self._config.objective)
        grad_norm = self._update()
        self.rollout_step += 1
        self._move_anchor()
        return StepReport({**metrics, "grad_norm": grad_norm}, time.perf_counter() - started)

    def _move_anchor(self) -> None:
        """J-BOND's moving average, or the hard updates of iterated BOND."""
        objective = self._config.objective
        if isinstance(objective, JBondConfig):
            update_moving_average(
                self.pair.factors(ANCHOR), self.pair.factors(POLICY), objective.eta
            )
        elif isinstance(objective, FixedBondConfig):
            every = objective.anchor_every_steps
            if every and self.rollout_step % every == 0:
                self.set_anchor()

    @property
    def anchor_is_reference(self) -> bool:
        """Whether the anchor still is what it began as: all of its B factors are zero."""
        tensors = self.pair.tensors(ANCHOR)
        return not any(bool(t.any()) for name, t in tensors.items() if "lora_B" in name)

    def set_anchor(self) -> None:
        """A hard update: the anchor becomes the policy."""
        update_moving_average(self.pair.factors(ANCHOR), self.pair.factors(POLICY), eta=1)

    def logprobs(self, name: AdapterName | None, rows: Sequence[TokenRow]) -> list[float]:
        """log P of each completion at temperature 1, under an adapter or the reference (None)."""
        with torch.no_grad(), self.pair.using(name) as model:
            return sequence_logprobs(model, rows, temperature=1.0).tolist()

    def state(self) -> dict[str, Any]:
        """For the checkpoint: tensors and plain values, by reference."""
        return {
            "policy": self.pair.tensors(POLICY),
            "anchor": self.pair.tensors(ANCHOR),
            "optimizer": self._optimizer.state_dict(),
            "phase": self.phase,
            "phase_step": self.phase_step,
            "rollout_step": self.rollout_step,
            "num_phase_steps": self._num_phase_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.begin(state["phase"], state["num_phase_steps"])
        self.phase_step = state["phase_step"]
        self.rollout_step = state["rollout_step"]
        self.pair.load_tensors(POLICY, state["policy"])
        self.pair.load_tensors(ANCHOR, state["anchor"])
        self._optimizer.load_state_dict(state["optimizer"])

    def learning_rate(self) -> float:
        """Of the next update."""
        warm = min(1.0, (self.phase_step + 1) / (self._config.warmup_steps + 1))
        done, steps = self.rollout_step, self._config.learning_rate_decay_steps
        if self.phase == "winners":
            done, steps = self.phase_step, max(1, self._num_phase_steps)
        left = 1 - done / steps if steps else 1.0
        return self._base_rate() * warm * max(FINAL_RATE, left)

    def _base_rate(self) -> float:
        winners = self.phase == "winners"
        return self._config.winners.learning_rate if winners else self._config.learning_rate

    def _new_optimizer(self, rate: float) -> torch.optim.AdamW:
        factors = list(self.pair.factors(POLICY).values())
        return torch.optim.AdamW(factors, lr=rate, weight_decay=0.0)

    def _update(self) -> float:
        """Clip, step, and return the gradient's norm before clipping."""
        factors = list(self.pair.factors(POLICY).values())
        norm = float(torch.nn.utils.clip_grad_norm_(factors, self._config.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm} at step {self.phase_step} of {self.phase}: lower "
                "the learning rate; the last checkpoint is unharmed"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self._optimizer.step()
        self.phase_step += 1
        return norm


def _check_objective(objective: ObjectiveConfig, teacher: Other | None) -> None:
    """Raise `ConfigError` for settings that no batch can serve."""
    grouped = isinstance(objective, JBondConfig | FixedBondConfig) and objective.baseline == "group"
    if grouped and objective.num_policy_samples < 2:
        raise ConfigError(
            "trainer.objective: baseline 'group' needs num_policy_samples of at least 2, not "
            f"{objective.num_policy_samples}; raise it, or take baseline 'batch'"
        )
    if isinstance(objective, GkdConfig) and teacher is None:
        raise ConfigError("trainer.objective: type 'gkd' needs a teacher; set `teacher`")
