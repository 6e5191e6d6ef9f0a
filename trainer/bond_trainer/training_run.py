"""One training run: prompts, rollouts, update, publish; on a schedule evaluate and propose."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from bond_core.config import FixedBondConfig, GkdConfig
from bond_core.errors import EngineUnavailableError, ScorerUnavailableError, ScoringError
from bond_core.store import PolicyRecord
from bond_core.types import REFERENCE_VERSION
from bond_trainer.checkpoints import CheckpointError, Snapshot
from bond_trainer.draws import UnusablePromptsError
from bond_trainer.learner import StepReport
from bond_trainer.metrics import best_of_n_curve
from bond_trainer.mismatch import mismatch_alarm
from bond_trainer.opening import Parts
from bond_trainer.patience import Patience, StoppedWaitingError
from bond_trainer.progress import Progress
from bond_trainer.prompt_pool import TrainingPrompt
from bond_trainer.publication import Publication
from bond_trainer.rollouts import (
    RolloutCost,
    RolloutGroup,
    collect,
    derived_seed,
    samples_per_prompt,
)
from bond_trainer.served_publishing import PublicationError
from bond_trainer.standing import curve_metrics, evaluation_standing
from bond_trainer.winners_phase import run_winners_phase

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 10
"""The log gets a line so often; every step is in the store's metrics."""

MAX_SCORING_FAILURES = 10
"""Failed batches in a row after which the run gives up: the scorer is broken, not one answer."""

MAX_CHECKPOINT_FAILURES = 3
"""Checkpoints in a row that the disk refused, after which the run ends: what it learns would be
lost."""


@dataclass(slots=True)
class TrainingRun:
    """One trainer life: where it is, and what it does next."""

    parts: Parts
    progress: Progress
    stop: asyncio.Event
    max_steps: int
    """0 goes on for ever."""
    step: int = 0
    """J-BOND updates so far."""
    proposed_at: int = -1
    """Step of the last proposal."""
    looked_at: int = -1
    """Step of the last evaluation, whether it found enough prompts or not."""
    begun: bool = False
    """Whether the winners phase is over, or switched off."""
    winners_window: Mapping[str, int] = field(default_factory=dict[str, int])
    """The rows of the log that the winners phase learned from."""
    half_learned: bool = False
    """Whether the run was stopped inside the winners phase: nothing of it is kept."""
    scoring_failures: int = 0
    """Batches and evaluations in a row of which nothing could be scored."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Prompts that were taken but gave no rollouts, by reason."""
    checkpoint_failures: int = 0
    """Checkpoints in a row that could not be written."""
    checkpoint_error: str | None = None
    """Why the last one could not; shown until one is written."""
    evaluation_error: str | None = None
    """Why the last evaluation failed; shown until one succeeds."""
    mismatch_error: str | None = None
    """That servers sample from another law than is learned; shown while they do."""
    publication: Publication = field(init=False)

    def __post_init__(self) -> None:
        trainer = self.parts.config.trainer
        patience = Patience(trainer.rollouts.max_pause_s)
        self.publication = Publication(
            self.parts.publisher, self.progress, self.stop, patience, trainer.poll_s
        )

    async def run(self) -> None:
        """Take up the last checkpoint, then learn until there is a reason to end."""
        await self._resume()
        self.parts.metrics.open_at(self.step)
        self.progress.metrics.update(self.parts.metrics.latest("eval"))
        try:
            await self._learn()
        except StoppedWaitingError:
            logger.info("stopped while waiting for servers, at step %d", self.step)
        except (EngineUnavailableError, PublicationError):
            self._checkpoint()
            raise
        if not self.half_learned:
            self._checkpoint()

    async def _learn(self) -> None:
        await self.publication.renew(self.step)
        if self._is_scheduled() and not self._done():
            await self._keep_schedule()  # the run was killed before it was through
        while not self._done() and not self.half_learned:
            if self.step == 0 and not self.begun:
                await self._try_winners()
            if self._done():
                break
            num_prompts = self.parts.config.trainer.prompts_per_step
            prompts = await self.publication.answered(
                lambda n=num_prompts: self.parts.source.take(n)
            )
            self._count()
            if prompts:
                await self._step(prompts)
            elif self.parts.ends_with_prompts:
                break
            else:
                await self._wait()
        if self.half_learned:
            return
        ended = self.parts.ends_with_prompts and not self.stop.is_set()
        if ended or self._reached_max():
            await self._propose()

    async def _try_winners(self) -> None:
        """The winners phase, if the log has enough by now, and a proposal of what it gave."""
        trainer = self.parts.config.trainer
        if not trainer.winners.enabled or isinstance(trainer.objective, GkdConfig):
            self.begun = True
            return
        outcome = await run_winners_phase(self.parts, self.progress, self.stop)
        self.half_learned = outcome.end == "stopped"
        if outcome.end == "learned":
            self.begun = True
            self.winners_window = outcome.log_window
            self._checkpoint()
            self.publication.at = None
            await self._propose()

    async def _winners_still_wanted(self) -> bool:
        """Whether a phase that never ran may still run: not after a promotion, since what users
        are answered with has then left what the winners were drawn from. Nor for iterated BOND once
        its anchor has moved: it would be pulled back to Best-of-N of the reference."""
        moved = not self.parts.learner.anchor_is_reference
        if moved and isinstance(self.parts.config.trainer.objective, FixedBondConfig):
            return False
        return not self.begun and await self.parts.store.policies.active() == REFERENCE_VERSION

    async def _step(self, prompts: list[TrainingPrompt]) -> None:
        """Roll out, update, and do what the schedule has for the step that was reached."""
        await self.progress.enter("training")
        config = self.parts.config
        try:
            await self.publication.renew(self.step, config.trainer.rollouts.max_staleness)
            groups, cost = await self.publication.answered(lambda: self._collect(prompts))
        except ScoringError as error:
            await self._scoring_failed(error)
            return
        except StoppedWaitingError:
            self.left_out["engine_away"] += len(prompts)
            self._count()
            raise
        self.left_out.update(cost.left_out)
        self._count()
        if not groups:  # none fits into the context
            return
        report = await asyncio.to_thread(self.parts.learner.learn_from_rollouts, groups)
        staleness = self.publication.staleness(self.step)
        self.step += 1
        self.scoring_failures = 0
        self._record(report, cost, staleness)
        if self._is_scheduled():
            await self._keep_schedule()
        elif self.step % config.trainer.checkpoint_every_steps == 0:
            self._checkpoint()

    async def _take(self) -> list[TrainingPrompt]:
        return await self.parts.source.take(self.parts.config.trainer.prompts_per_step)

    async def _collect(
        self, prompts: list[TrainingPrompt]
    ) -> tuple[list[RolloutGroup], RolloutCost]:
        config = self.parts.config
        num_policy_samples, num_anchor_samples = samples_per_prompt(config.trainer.objective)
        return await collect(
            self.parts.engine,
            self.parts.scorers.scorer,
            [prompt.messages for prompt in prompts],
            config.sampling.params(),
            num_policy_samples=num_policy_samples,
            num_anchor_samples=num_anchor_samples,
            seed=derived_seed(config.trainer.seed, "rollouts", self.step),
            logged=[p.logged for p in prompts] if self._anchor_is_reference() else (),
        )

    def _is_scheduled(self) -> bool:
        """Whether this step has an evaluation, and it has not been made."""
        every = self.parts.config.trainer.evaluation.every_steps
        return self.step > 0 and self.step % every == 0 and self.looked_at != self.step

    async def _keep_schedule(self) -> None:
        """The winners phase if it still waits for enough rows, then the evaluation."""
        if await self._winners_still_wanted():
            self._checkpoint()  # stopped inside the phase, the run goes on from here
            await self._try_winners()
        if not self.half_learned:
            await self._propose()

    def _anchor_is_reference(self) -> bool:
        """Whether logged answers of the reference are draws of the anchor, and wanted as such."""
        objective = self.parts.config.trainer.objective
        if not isinstance(objective, FixedBondConfig) or not objective.logged:
            return False
        return self.parts.learner.anchor_is_reference

    def _record(self, report: StepReport, cost: RolloutCost, staleness: int) -> None:
        self.progress.step = self.step
        self._look_at_mismatch(report, staleness)
        self.progress.error = self._standing_error()
        self.progress.record_metrics("train", report.metrics)
        self.progress.record_metrics(
            "seconds",
            {
                "generate": cost.generate_s,
                "score": cost.score_s,
                "train": report.train_s,
                "publish": self.publication.take_seconds(),
            },
        )
        self.progress.record_metrics(
            "rollout",
            {"tokens": cost.num_tokens, "samples": cost.num_samples, "staleness": staleness},
        )
        self.parts.metrics.append(self.step, self.progress.of("train", "seconds", "rollout"))
        if self.step % LOG_EVERY_STEPS == 0:
            logger.info(
                "step %d: policy's reward %.4g, %.1f s",
                self.step,
                report.metrics["reward_policy_mean"],
                cost.generate_s + cost.score_s + report.train_s,
            )

    def _look_at_mismatch(self, report: StepReport, staleness: int) -> None:
        alarm = mismatch_alarm(report.metrics, self.parts.config.trainer.rollouts, staleness)
        if alarm and not self.mismatch_error:
            logger.warning("step %d: %s", self.step, alarm)
        self.mismatch_error = alarm

    def _standing_error(self) -> str | None:
        """What is wrong and does not stop the run."""
        return self.checkpoint_error or self.evaluation_error or self.mismatch_error

    async def _scoring_failed(self, error: ScoringError) -> None:
        """Leave the batch or evaluation out, for a scorer that fails now and then; give up if it
        always does. A reward server that is away is waited for: it may be restarting."""
        if not isinstance(error, ScorerUnavailableError):
            self.scoring_failures += 1
        self.left_out["scoring_failed"] += 1
        self._count()
        self.progress.error = str(error)
        logger.warning("left out at step %d: %s", self.step, error)
        if self.scoring_failures >= MAX_SCORING_FAILURES:
            raise error
        await self._wait()

    async def _propose(self) -> None:
        """Evaluate and propose the policy as it is, unless that was done at this very step."""
        if self.proposed_at == self.step:
            return
        await self.publication.renew(self.step)
        await self.progress.enter("evaluating")
        try:
            record = await self.publication.answered(self._evaluate)
        except ScoringError as error:
            self.evaluation_error = f"evaluation at step {self.step}: {error}"
            await self._scoring_failed(error)
            return
        self.looked_at = self.step
        if record is None:
            logger.warning(
                "step %d: no evaluation, since there are %d held-out prompts and "
                "trainer.evaluation.min_prompts is %d: give more prompts (a tenth is held out), "
                "lower it, or name a file in trainer.evaluation.gate_prompts",
                self.step,
                len(await self.parts.held_out.prompts()),
                self.parts.config.trainer.evaluation.min_prompts,
            )
            self._checkpoint()
            return
        self.evaluation_error = None
        self.progress.error = self._standing_error()
        self.proposed_at = self.step
        logger.info("%s is %s: %s", record.version, record.state, record.reason)
        scalars = {k: v for k, v in record.evaluation.items() if isinstance(v, int | float)}
        self.progress.record_metrics("eval", {**scalars, "version": record.version})
        logger.info("%s", evaluation_standing(self.progress.metrics))
        self.parts.metrics.append(self.step, self.progress.of("eval"))
        self._checkpoint()

    async def _evaluate(self) -> PolicyRecord | None:
        """Propose on the held-out prompts that can be used; None if they are too few."""
        parts = self.parts
        while (held_out := await parts.held_out.resolve(parts.engine, parts.scorers)) is not None:
            try:
                record = await parts.proposer.propose(self.step, held_out, self._log_window())
            except UnusablePromptsError as error:
                parts.held_out.leave_out(error)
                continue
            curve = await asyncio.to_thread(best_of_n_curve, held_out.reference)
            self.progress.record_metrics("eval", curve_metrics(curve))
            return record
        return None

    def _log_window(self) -> dict[str, int]:
        """What of the log the policy has seen, for its manifest."""
        seen, winners = self.parts.source.log_window, self.winners_window
        window = {"step": self.step, **winners, **seen}
        for key, widest in (("first_seq", min), ("last_seq", max)):
            found = [part[key] for part in (seen, winners) if key in part]
            if found:
                window[key] = widest(found)
        return window

    async def _wait(self) -> None:
        """Until it is time to look for prompts again, or to stop."""
        await self.progress.wait(self.stop, self.parts.config.trainer.poll_s)

    def _count(self) -> None:
        self.progress.counts.update(Counter(self.parts.source.counts) + self.left_out)

    def _reached_max(self) -> bool:
        return self.max_steps > 0 and self.step >= self.max_steps

    def _done(self) -> bool:
        return self.stop.is_set() or self._reached_max()

    def _checkpoint(self) -> None:
        run = {
            "proposed_at": self.proposed_at,
            "looked_at": self.looked_at,
            "begun": self.begun,
            "winners_window": dict(self.winners_window),
            "source": self.parts.source.state(),
            "counts": dict(self.progress.counts),
            "left_out": dict(self.left_out),
        }
        state = self.parts.learner.state()
        try:
            self.parts.checkpoints.save(Snapshot(self.step, self.parts.settings, state, run))
        except CheckpointError as error:
            self.checkpoint_failures += 1
            self.checkpoint_error = self.progress.error = str(error)
            logger.error("%s", error)
            if self.checkpoint_failures >= MAX_CHECKPOINT_FAILURES:
                raise
            return
        had_failed = self.checkpoint_error is not None
        self.checkpoint_error, self.checkpoint_failures = None, 0
        if had_failed:
            self.progress.error = self._standing_error()

    async def _resume(self) -> None:
        snapshot = self.parts.checkpoints.latest(self.parts.settings)
        if snapshot is None:
            return
        self.parts.learner.restore(snapshot.learner)
        await self.parts.source.restore(snapshot.run["source"])
        self.step = self.progress.step = snapshot.step
        self.proposed_at = snapshot.run["proposed_at"]
        self.looked_at = snapshot.run["looked_at"]
        self.begun = snapshot.run["begun"]
        self.winners_window = snapshot.run["winners_window"]
        self.progress.counts = dict(snapshot.run["counts"])
        self.left_out = Counter(snapshot.run["left_out"])
        logger.info("continuing at step %d", self.step)
