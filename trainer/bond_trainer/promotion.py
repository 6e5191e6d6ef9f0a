"""Proposing a policy version: evaluate, ask the gate, write the directory, tell the store.

The directory is written, synced and renamed before the store hears of it; the controller in the
gateway takes what passed from there. Versions that failed are kept in the store with the reasons,
the newest of them on disk too.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bond_core.adapters import (
    MANIFEST_FILE,
    Manifest,
    adapter_path,
    check_base,
    read_manifest,
    verify_adapter,
    write_adapter,
)
from bond_core.config import BondConfig
from bond_core.engines.base import Engine
from bond_core.holdout import Split
from bond_core.intervals import MeanEstimate
from bond_core.store import EvaluationRecord, PolicyRecord, Store
from bond_core.types import REFERENCE_VERSION, PolicyState
from bond_trainer.draws import Draws, FloatArray, Scorers, draw_scored
from bond_trainer.gate import GateDecision, decide
from bond_trainer.gate_inputs import GateInputs
from bond_trainer.held_out import HeldOut
from bond_trainer.kl import kl_to_reference
from bond_trainer.learner import Learner
from bond_trainer.lora import ANCHOR, POLICY
from bond_trainer.metrics import best_of_n_metrics, policy_metrics
from bond_trainer.probe import choose_probe
from bond_trainer.rejected import forget_old_rejected
from bond_trainer.rollouts import derived_seed
from bond_trainer.suite import Suite


@dataclass(frozen=True, slots=True)
class Evidence:
    """Fresh samples of a challenger and of the incumbent on the same held-out prompts."""

    version: str
    """The challenger's name."""
    step: int
    incumbent: str
    ours: Draws
    theirs: Draws
    kl_PS: FloatArray
    """The challenger's KL to the reference, nats per answer."""
    held_out: HeldOut
    suite_PS: tuple[FloatArray, FloatArray] | None
    """The user's suite: scores of the challenger and of the reference."""


@dataclass(frozen=True, slots=True)
class Proposer:
    """Evaluates the learner's policy against the incumbent, and proposes it."""

    config: BondConfig
    store: Store
    engine: Engine
    """Holds the learner's policy under the name `policy`."""
    learner: Learner
    scorers: Scorers
    suite: Suite | None = None
    """The user's check for forgetting."""

    async def propose(
        self, step: int, held_out: HeldOut, log_window: Mapping[str, int]
    ) -> PolicyRecord:
        """Evaluate at this step, write the next version, and insert it with the gate's verdict:
        state `challenger` if it passed, else `rejected`."""
        evidence = await self._gather(step, held_out)
        decision = await self._decide(evidence)
        metrics = self._metrics(evidence)
        manifest = await self._manifest(evidence, metrics, log_window)
        path = await asyncio.to_thread(
            write_adapter,
            self.config.adapters_dir,
            manifest,
            lambda folder: self.learner.pair.save(POLICY, folder),
        )
        await self.store.evaluations.insert(
            EvaluationRecord(
                version=evidence.version,
                step=step,
                split=Split.GATE,
                created_at=manifest.created_at,
                metrics=metrics,
            )
        )
        record = _policy_record(manifest, path, decision, metrics)
        await self.store.policies.insert(record)
        await forget_old_rejected(self.store, self.config.adapters_dir)
        return record

    async def check_incumbent(self) -> None:
        """Raise `AdapterError` if the incumbent was made for another base than the trainer's.

        A learner of these weights compared with an adapter of others would compare nothing. An
        incumbent whose directory is gone is the next proposal's to report.
        """
        incumbent = await incumbent_version(self.store)
        path = adapter_path(self.config.adapters_dir, incumbent.version)
        if incumbent.version != REFERENCE_VERSION and (path / MANIFEST_FILE).is_file():
            manifest = await asyncio.to_thread(read_manifest, path)
            check_base(manifest, self.engine.info.base_revision)

    async def _gather(self, step: int, held_out: HeldOut) -> Evidence:
        """Challenger and incumbent share the seed, and so their noise."""
        incumbent = await incumbent_version(self.store)
        await self._load_only(incumbent)
        ours, theirs = [
            await draw_scored(
                self.engine,
                version,
                held_out.prompts,
                self.config.sampling.params(),
                self.config.trainer.evaluation.samples_per_prompt,
                derived_seed(self.config.trainer.seed, "gate", step),
                self.scorers,
            )
            for version in (POLICY, incumbent.version)
        ]
        kl_PS = await asyncio.to_thread(
            kl_to_reference,
            self.learner.pair,
            POLICY,
            ours.generations,
            self.config.sampling.temperature,
        )
        suite = await self.suite.scores(self.engine, POLICY, step) if self.suite else None
        version = await self.store.policies.next_version()
        return Evidence(version, step, incumbent.version, ours, theirs, kl_PS, held_out, suite)

    async def _load_only(self, incumbent: PolicyRecord) -> None:
        """Hold the incumbent's weights in the trainer's engine, and no older version's."""
        loaded = await self.engine.loaded_versions()
        for version in loaded:
            if version not in (POLICY, ANCHOR, REFERENCE_VERSION, incumbent.version):
                await self.engine.drop_adapter(version)
        if incumbent.version not in loaded:
            # not where it was written: that may have been under another mount
            path = adapter_path(self.config.adapters_dir, incumbent.version)
            check_base(verify_adapter(path), self.engine.info.base_revision)
            await self.engine.load_adapter(incumbent.version, path)

    async def _decide(self, evidence: Evidence) -> GateDecision:
        tested = [p for p in await self.store.policies.all() if p.version != REFERENCE_VERSION]
        ours, theirs, reference = evidence.ours, evidence.theirs, evidence.held_out.reference
        our_suite, reference_suite = evidence.suite_PS or (None, None)
        return decide(
            GateInputs(
                challenger=evidence.version,
                incumbent=evidence.incumbent,
                challenger_rewards=ours.rewards_PS,
                incumbent_rewards=theirs.rewards_PS,
                challenger_kl=evidence.kl_PS,
                challenger_tokens=ours.num_tokens_PS,
                reference_tokens=reference.num_tokens_PS,
                challenger_variety=ours.variety,
                reference_variety=reference.variety,
                challenger_truncated_share=ours.truncated_share,
                reference_truncated_share=reference.truncated_share,
                challenger_judge_scores=ours.judge_PS,
                incumbent_judge_scores=theirs.judge_PS,
                reference_judge_scores=reference.judge_PS,
                challenger_suite_scores=our_suite,
                reference_suite_scores=reference_suite,
            ),
            self.config.trainer.gate,
            num_challengers_before=len(tested),
            num_promotions_before=sum(p.evaluation["gate"]["passed"] for p in tested),
        )

    def _metrics(self, evidence: Evidence) -> dict[str, Any]:
        best_of = self.config.arms.best_of
        reference = evidence.held_out.reference
        metrics = policy_metrics(evidence.ours, reference, evidence.kl_PS, best_of)
        if best_of <= reference.rewards_PS.shape[1]:
            metrics["best_of_n"] = best_of_n_metrics(reference, best_of)
        metrics["reference"] = best_of_n_metrics(reference, 1)
        return metrics

    async def _manifest(
        self, evidence: Evidence, metrics: Mapping[str, Any], log_window: Mapping[str, int]
    ) -> Manifest:
        config = self.config
        probe = await choose_probe(
            self.learner, self.engine, evidence.incumbent, evidence.ours.generations
        )
        return Manifest(
            version=evidence.version,
            parent=evidence.incumbent,
            base_model=config.model.served_name,
            base_revision=self.engine.info.base_revision,
            tokenizer_sha256=self.engine.info.tokenizer_sha256,
            step=evidence.step,
            created_at=time.time(),
            objective=config.trainer.model_dump(mode="json", exclude={"evaluation", "gate"}),
            sampling=config.sampling.model_dump(mode="json"),
            log_window=dict(log_window),
            evaluation=dict(metrics),
            probe=probe,
        )


async def incumbent_version(store: Store) -> PolicyRecord:
    """What a challenger is compared with: the newest version that waits for its turn, else the
    active one. So that versions proposed while no gateway runs build on one another."""
    for state in (PolicyState.CHALLENGER, PolicyState.CANARY):
        waiting = await store.policies.in_state(state)
        if waiting:
            return waiting[-1]
    active = await store.policies.get(await store.policies.active())
    assert active is not None, "the alias is a foreign key of the versions"
    return active


def _policy_record(
    manifest: Manifest, path: Path, decision: GateDecision, metrics: Mapping[str, Any]
) -> PolicyRecord:
    return PolicyRecord(
        version=manifest.version,
        state=PolicyState.CHALLENGER if decision.promote else PolicyState.REJECTED,
        path=str(path.resolve()),
        parent=manifest.parent,
        step=manifest.step,
        created_at=manifest.created_at,
        updated_at=manifest.created_at,
        reason="; ".join(decision.reasons),
        evaluation={**metrics, "gate": _gate_evidence(decision)},
    )


def _mean(estimate: MeanEstimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _gate_evidence(decision: GateDecision) -> dict[str, Any]:
    return {
        "passed": decision.promote,
        "level": decision.level,
        "reward_gain": decision.reward_gain.mean,
        "reward_gain_lower": decision.reward_gain_lower,
        "kl_upper_nats": decision.kl_upper_nats,
        "judge_gain": _mean(decision.judge_gain),
        "judge_gain_over_reference": _mean(decision.judge_gain_over_reference),
        "suite_gain_over_reference": _mean(decision.suite_gain_over_reference),
        "checks": [
            {"name": check.name, "passed": check.passed, "sentence": check.sentence}
            for check in decision.checks
        ],
    }
