"""How fast, and how efficiently, the learner approaches Best-of-8 on the demo world.

Runs the trainer's own parts without gateway and store, for a time budget: the winners phase on the
shipped log, then J-BOND on training prompts. The clock is the process's CPU time, which is wall
time on a core of its own, and evaluations pause it. One run per call:

    python bench/demo_training.py --seconds 180 --out bench/results/demo_training/default.json
    python bench/demo_training.py --seconds 180 --set learning_rate=1e-3 --set objective.eta=0.05

Every evaluation has reward, mean reference quantile u, KL to the reference in nats, N_q, N_KL and
their ratio, on the gate half of the held-out prompts.
"""

import argparse
import asyncio
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from bond_core.config import (
    ClassifierScorerConfig,
    FunctionScorerConfig,
    SamplingConfig,
    TrainerConfig,
)
from bond_core.engines.local import LocalEngine
from bond_core.engines.local.loading import load_policy
from bond_core.rewards import build_scorer
from bond_core.types import Message
from bond_demo import worlds
from bond_demo.settings import demo_config
from bond_trainer.draws import Draws, Scorers, draw_scored
from bond_trainer.kl import kl_to_reference
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair
from bond_trainer.metrics import best_of_n_curve, policy_metrics
from bond_trainer.reference_draws import reference_draws
from bond_trainer.rollouts import collect, derived_seed, samples_per_prompt
from bond_trainer.winners_phase import epochs_of

CACHE = Path(tempfile.gettempdir()) / "bond-demo-training"
SAMPLING = SamplingConfig(max_tokens=80)
BEST_OF = 8


@dataclass(slots=True)
class Bench:
    """The open parts, the clock and what was measured."""

    config: TrainerConfig
    engine: LocalEngine
    learner: Learner
    scorers: Scorers
    gate: list[tuple[Message, ...]]
    reference: Draws
    seconds: float
    trained_s: float = 0.0
    parts_s: dict[str, float] = field(default_factory=dict[str, float])
    evaluations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def publish(self) -> None:
        for name in (POLICY, ANCHOR):
            self.engine.publish(name, self.learner.pair.merged_weights(name))

    @contextmanager
    def spending(self, part: str) -> Iterator[None]:
        started = time.process_time()
        yield
        seconds = time.process_time() - started
        self.trained_s += seconds
        self.parts_s[part] = self.parts_s.get(part, 0.0) + seconds

    async def evaluate(self, phase: str, step: int, name: AdapterName = POLICY) -> None:
        self.publish()
        started = time.process_time()
        draws = await draw_scored(
            self.engine, name, self.gate, SAMPLING.params(), 4, derived_seed(step), self.scorers
        )
        kl = kl_to_reference(self.learner.pair, name, draws.generations, SAMPLING.temperature)
        row = policy_metrics(draws, self.reference, kl, BEST_OF)
        row |= {"phase": phase, "step": step, "trained_s": self.trained_s}
        row["evaluation_s"] = time.process_time() - started
        self.evaluations.append(row)
        report(row)


def report(row: dict[str, Any]) -> None:
    judged = "".join(
        f" {k} {row[f'{k}_mean']:+.3f}" for k in ("judge", "gold") if f"{k}_mean" in row
    )
    print(
        f"{row['phase']:8} step {row['step']:4d} {row['trained_s']:6.1f} s  "
        f"reward {row['reward_mean']:+.3f}  u {row['quantile_mean']:.3f}  KL {row['kl_nats']:.2f}  "
        f"N_q {row['n_q']:.2f} / N_KL {row['n_kl']:.2f} = {row['kl_efficiency']:.2f}  "
        f"win vs Best-of-8 {row['win_rate_vs_best_of_n']:.3f}  "
        f"{row['tokens_per_answer']:.1f} tokens{judged}  ({row['evaluation_s']:.1f} s)",
        flush=True,
    )


async def winners_phase(bench: Bench) -> None:
    winners = bench.config.winners
    rows = [winner for winner, _ in zip(logged_winners(), range(winners.max_rows), strict=False)]
    num_steps = math.ceil(winners.epochs * len(rows) / winners.rows_per_step)
    bench.learner.begin("winners", num_steps)
    batches = epochs_of(rows, winners.rows_per_step, bench.config.seed)
    for _ in range(num_steps):
        with bench.spending("winners"):
            bench.learner.learn_from_winners(next(batches))
    bench.learner.set_anchor()
    bench.learner.begin("rollouts")
    await bench.evaluate("winners", num_steps)


async def jbond_phase(bench: Bench, every_s: float) -> None:
    config = bench.config
    prompts = worlds.training_prompts(20_000, seed=7)
    bench.publish()
    policy, anchor = samples_per_prompt(config.objective)
    step, next_evaluation = 0, bench.trained_s + every_s
    while bench.trained_s < bench.seconds:
        start = step * config.prompts_per_step % (len(prompts) - config.prompts_per_step)
        with bench.spending("rollouts"):
            groups, _ = await collect(
                bench.engine,
                bench.scorers.scorer,
                prompts[start : start + config.prompts_per_step],
                SAMPLING.params(),
                num_policy_samples=policy,
                num_anchor_samples=anchor,
                seed=derived_seed(config.seed, step),
            )
        with bench.spending("train"):
            bench.learner.learn_from_rollouts(groups)
            bench.publish()
        step += 1
        if bench.trained_s >= next_evaluation or bench.trained_s >= bench.seconds:
            next_evaluation += every_s
            await bench.evaluate("jbond", step)


def logged_winners() -> Iterator[TokenRow]:
    """Winners of the shipped Best-of-8 log."""
    for row in worlds.seed_log():
        best = max(row["candidates"], key=lambda candidate: candidate["score"])
        yield TokenRow(tuple(row["prompt_token_ids"]), tuple(best["token_ids"]))


async def run(config: TrainerConfig, seconds: float, every_s: float) -> dict[str, Any]:
    torch.set_num_threads(config.threads)
    base, tokenizer = load_policy(worlds.policy_path(), "float32", "cpu")
    torch.manual_seed(config.seed)
    learner = Learner(LoraPair(base, config.lora), config, SAMPLING)
    engine = LocalEngine.over(
        learner.pair.base,
        tokenizer,
        max_rows=config.rollout_rows,
        max_context_tokens=512,
        name="demo",
    )
    await engine.start()
    scorer = build_scorer(ClassifierScorerConfig(path=worlds.proxy_path()))
    await scorer.start()
    judge = build_scorer(ClassifierScorerConfig(path=worlds.judge_path()))
    await judge.start()
    gold = build_scorer(FunctionScorerConfig(function="bond_demo.settings:gold_rewards"))
    await gold.start()
    scorers = Scorers(scorer, judge, gold)
    gate = [prompt.messages for prompt in worlds.gate_prompts()][:128]
    sources = [worlds.policy_path(), worlds.proxy_path(), worlds.judge_path()]
    reference = await reference_draws(
        engine, gate, SAMPLING.params(), 32, 0, scorers, CACHE, sources
    )
    bench = Bench(config, engine, learner, scorers, gate, reference, seconds)
    if config.winners.enabled:
        await winners_phase(bench)
    await jbond_phase(bench, every_s)
    await bench.evaluate("anchor", len(bench.evaluations), ANCHOR)
    await engine.close()
    for opened in (scorer, judge, gold):
        await opened.close()
    return {
        "config": config.model_dump(mode="json", exclude={"evaluation"}),
        "best_of_n": best_of_n_curve(reference),
        "seconds": bench.parts_s,
        "evaluations": bench.evaluations,
    }


def with_settings(base: dict[str, Any], assignments: list[str]) -> TrainerConfig:
    values: dict[str, Any] = copy.deepcopy(base)
    for assignment in assignments:
        path, _, value = assignment.partition("=")
        *sections, key = path.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = yaml.safe_load(value)
    return TrainerConfig.model_validate(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--every", type=float, default=30, help="seconds between evaluations")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = with_settings(demo_config()["trainer"], arguments.set)
    result = asyncio.run(run(config, arguments.seconds, arguments.every))
    print("seconds by part:", {k: round(v, 1) for k, v in result["seconds"].items()})
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
