"""The learner: one optimiser over the policy's LoRA factors, and the anchor that follows it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bond_core.config import SamplingConfig, TrainerConfig
from bond_core.errors import ConfigError
from bond_trainer.logprobs import TokenRow, sequence_logprobs
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair
from bond_trainer.moving_average import update_moving_average
from bond_trainer.objectives import (
    JBondInputs,
    build_objective,
    winners_loss,
)
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.shared_prompts import backward_shared_prompts

Phase = Literal["winners", "jbond"]
WINNERS_FINAL_RATE = 0.1
"""Share of the winners phase's learning rate that is left at its end; it decays linearly."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one update did."""

    metrics: Mapping[str, float]
    train_s: float


class Learner:
    """Updates the policy from rollouts or from winners.

    The phases have their own optimisers: `winners` warms up and decays over a known number of
    steps, `jbond` warms up and stays.
    """

    def __init__(self, pair: LoraPair, config: TrainerConfig, sampling: SamplingConfig) -> None:
        if sampling.top_p != 1:
            raise ConfigError(
                f"sampling.top_p is {sampling.top_p}: the trainer learns the untruncated "
                "distribution, since a truncated one has no log-ratio outside its support; set "
                "it to 1, or serve without a trainer"
            )
        self.pair = pair
        self._config = config
        self._temperature = sampling.temperature
        self._objective = build_objective(config.objective)
        self.phase: Phase = "jbond"
        self.phase_step = 0
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
        coefficients_R = torch.full((len(winners),), -1 / len(winners))
        logprobs_R = self._backward(winners, coefficients_R)
        metrics = {**winners_loss(logprobs_R).metrics, "grad_norm": self._update()}
        return StepReport(metrics, time.perf_counter() - started)

    def learn_from_rollouts(self, groups: Sequence[RolloutGroup]) -> StepReport:
        """One J-BOND update, then the anchor's moving average.

        The policy's log-probabilities of its own samples are those of the engine, which sampled
        from these very weights; `logprob_mismatch` is the largest difference to the learner's
        own. Raises `ScoringError` for rewards that are not finite.
        """
        started = time.perf_counter()
        batch = _Batch.of(groups)
        with torch.no_grad(), self.pair.using(ANCHOR) as model:
            anchor_BP = sequence_logprobs(
                model, batch.policy_rows, temperature=self._temperature
            ).view_as(batch.sampled_BP)
        inputs = JBondInputs(
            policy_logprobs_BP=batch.sampled_BP.clone().requires_grad_(True),
            anchor_logprobs_BP=anchor_BP.to(batch.sampled_BP),
            forward_logprobs_BK=torch.zeros_like(
                batch.anchor_rewards_BK, dtype=batch.sampled_BP.dtype
            ).requires_grad_(True),
            policy_rewards_BP=batch.policy_rewards_BP,
            anchor_rewards_BK=batch.anchor_rewards_BK,
        )
        coefficients_BP, coefficients_BK = _coefficients(self._objective(inputs).loss, inputs)
        logprobs_R = self._backward(
            [*batch.policy_rows, *batch.anchor_rows],
            torch.cat([coefficients_BP.flatten(), coefficients_BK.flatten()]),
        )
        grad_norm = self._update()
        update_moving_average(
            self.pair.factors(ANCHOR), self.pair.factors(POLICY), self._config.objective.eta
        )
        metrics = self._rollout_metrics(inputs, batch, logprobs_R, coefficients_BP)
        return StepReport({**metrics, "grad_norm": grad_norm}, time.perf_counter() - started)

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
            "num_phase_steps": self._num_phase_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.begin(state["phase"], state["num_phase_steps"])
        self.phase_step = state["phase_step"]
        self.pair.load_tensors(POLICY, state["policy"])
        self.pair.load_tensors(ANCHOR, state["anchor"])
        self._optimizer.load_state_dict(state["optimizer"])

    def learning_rate(self) -> float:
        """Of the next update."""
        warm = min(1.0, (self.phase_step + 1) / (self._config.warmup_steps + 1))
        if self.phase == "jbond":
            return self._base_rate() * warm
        done = self.phase_step / max(1, self._num_phase_steps)
        return self._base_rate() * warm * max(WINNERS_FINAL_RATE, 1 - done)

    def _base_rate(self) -> float:
        winners = self.phase == "winners"
        return self._config.winners.learning_rate if winners else self._config.learning_rate

    def _new_optimizer(self, rate: float) -> torch.optim.AdamW:
        factors = list(self.pair.factors(POLICY).values())
        return torch.optim.AdamW(factors, lr=rate, weight_decay=0.0)

    def _backward(self, rows: Sequence[TokenRow], coefficients_R: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with self.pair.using(POLICY) as model:
            return backward_shared_prompts(
                model, rows, coefficients_R, temperature=self._temperature
            )

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

    def _rollout_metrics(
        self, inputs: JBondInputs, batch: "_Batch", logprobs_R: Tensor, coefficients_BP: Tensor
    ) -> dict[str, float]:
        """The objective's metrics at the learner's own log-probabilities."""
        num_policy = coefficients_BP.numel()
        own_BP = logprobs_R[:num_policy].view_as(coefficients_BP)
        used_BP = coefficients_BP != 0
        known_BP = torch.where(used_BP, own_BP, batch.sampled_BP)
        forward_BK = logprobs_R[num_policy:].view_as(batch.anchor_rewards_BK)
        final = JBondInputs(
            policy_logprobs_BP=known_BP,
            anchor_logprobs_BP=inputs.anchor_logprobs_BP,
            forward_logprobs_BK=forward_BK,
            policy_rewards_BP=batch.policy_rewards_BP,
            anchor_rewards_BK=batch.anchor_rewards_BK,
        )
        mismatch = float((known_BP - batch.sampled_BP).abs().max())
        return {**self._objective(final).metrics, "logprob_mismatch": mismatch}


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rollout groups as rows and tensors: _B prompts, _P policy and _K anchor samples."""

    policy_rows: list[TokenRow]
    anchor_rows: list[TokenRow]
    sampled_BP: Tensor
    policy_rewards_BP: Tensor
    anchor_rewards_BK: Tensor

    @classmethod
    def of(cls, groups: Sequence[RolloutGroup]) -> "_Batch":
        return cls(
            [TokenRow(g.prompt_token_ids, r.token_ids) for g in groups for r in g.policy],
            [TokenRow(g.prompt_token_ids, r.token_ids) for g in groups for r in g.anchor],
            torch.tensor([[r.logprob for r in g.policy] for g in groups], dtype=torch.float32),
            torch.tensor([[r.reward for r in g.policy] for g in groups], dtype=torch.float64),
            torch.tensor([[r.reward for r in g.anchor] for g in groups], dtype=torch.float64),
        )


def _coefficients(loss: Tensor, inputs: JBondInputs) -> tuple[Tensor, Tensor]:
    """d loss / d log P of the policy samples and of the anchor samples."""
    assert inputs.forward_logprobs_BK is not None
    wanted = (inputs.policy_logprobs_BP, inputs.forward_logprobs_BK)
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    policy, forward = (
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(wanted, found, strict=True)
    )
    return policy, forward
