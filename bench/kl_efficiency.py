"""How much KL a policy of the demo's size needs for Best-of-8's quality, and how much it spends.

Five steps, each writing to a folder, `--work`, so that a later one finds what it needs:

    python bench/kl_efficiency.py draw --rows 50000      # Best-of-8 winners of the reference
    python bench/kl_efficiency.py best-of-n              # Best-of-8 itself, by the same code
    python bench/kl_efficiency.py ceiling --seed 0       # maximum likelihood on all the winners
    python bench/kl_efficiency.py jbond --seed 0 --steps 150 --set objective.eta=0.005
    python bench/kl_efficiency.py average --of ceiling-0 ceiling-1 ceiling-2 \\
        --set lora.rank=48 --set lora.alpha=96 --scale 1 1.25

`ceiling` is what supervised learning on exact winners reaches; `jbond` goes on from it (or from the
reference with `--from-reference`). Every evaluation is on the 512 report prompts, 4 answers each,
against 16 reference answers each: mean quantile u, KL to the reference, N_q / N_KL, with bootstrap
intervals over prompts. Rows are appended to `--out`.
"""

import argparse
import asyncio
import gzip
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_training import SAMPLING, with_settings

from bond_core.best_of_n_law import effective_n_from_kl, kl_best_of_n_bound
from bond_core.config import ClassifierScorerConfig, TrainerConfig
from bond_core.engines.local import LocalEngine
from bond_core.engines.local.loading import load_policy
from bond_core.rewards import Scorer, build_scorer
from bond_core.statistics import quantiles
from bond_demo import worlds
from bond_demo.prompts import training_questions
from bond_demo.settings import demo_config
from bond_trainer.averaging import average_adapters
from bond_trainer.draws import Draws, Scorers, draw_scored
from bond_trainer.kl import kl_to_reference
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY, AdapterName, LoraPair
from bond_trainer.rollouts import collect, derived_seed, samples_per_prompt
from bond_trainer.winners_phase import epochs_of

BEST_OF, SAMPLES, REFERENCE_SAMPLES = 8, 4, 16
QUESTIONS_SEED = 777
"""Of the prompts whose winners are drawn; J-BOND's come from the seeds after it."""
CHUNK = 250
"""Prompts drawn at once."""


@dataclass(slots=True)
class Bench:
    """The open parts."""

    arguments: argparse.Namespace
    config: TrainerConfig
    engine: LocalEngine
    learner: Learner
    scorer: Scorer
    reference: Draws | None = None

    async def evaluate(self, name: AdapterName, tag: str, **facts: Any) -> None:
        """Append what the policy (or the anchor) is by now."""
        self.publish()
        draws = await self._draw(name, SAMPLES, derived_seed("report", self.arguments.seed))
        kl_PS = kl_to_reference(self.learner.pair, name, draws.generations, SAMPLING.temperature)
        if self.reference is None:
            self.reference = await self._draw("v0000", REFERENCE_SAMPLES, 4242)
        u_PS = quantiles(draws.rewards_PS, self.reference.rewards_PS)
        self.append(tag, u_PS.mean(axis=1), kl_PS.mean(axis=1), draws.rewards_PS, **facts)

    async def _draw(self, version: str, samples: int, seed: int) -> Draws:
        prompts = [prompt.messages for prompt in worlds.report_prompts()]
        scorers = Scorers(self.scorer, None, None)
        params = SAMPLING.params()
        return await draw_scored(self.engine, version, prompts, params, samples, seed, scorers)

    async def best_of_n(self) -> None:
        """Best-of-8 of fresh reference answers, its KL the bound of continuous rewards."""
        self.reference = await self._draw("v0000", REFERENCE_SAMPLES, 4242)
        fresh = await self._draw("v0000", BEST_OF * SAMPLES, 2121 + self.arguments.seed)
        best_PS = fresh.rewards_PS.reshape(len(fresh.rewards_PS), SAMPLES, BEST_OF).max(axis=2)
        u_PS = quantiles(best_PS, self.reference.rewards_PS)
        kl_P = np.full(len(best_PS), kl_best_of_n_bound(BEST_OF))
        self.append(f"best-of-{BEST_OF}", u_PS.mean(axis=1), kl_P, best_PS)

    def append(
        self, tag: str, u_P: np.ndarray, kl_P: np.ndarray, rewards: np.ndarray, **facts: Any
    ) -> None:
        generator = np.random.default_rng(0)
        resampled = [
            efficiency(u_P[i], kl_P[i])
            for i in (generator.integers(0, len(u_P), len(u_P)) for _ in range(1000))
        ]
        low, high = np.percentile(resampled, [2.5, 97.5])
        n_q = float(u_P.mean() / (1 - u_P.mean()))
        row = {
            "tag": tag,
            "seed": self.arguments.seed,
            "u": float(u_P.mean()),
            "u_se": float(u_P.std(ddof=1) / math.sqrt(len(u_P))),
            "kl": float(kl_P.mean()),
            "n_q": n_q,
            "n_kl": effective_n_from_kl(float(kl_P.mean())),
            "efficiency": efficiency(u_P, kl_P),
            "efficiency_ci95": [float(low), float(high)],
            "reward": float(rewards.mean()),
            "cpu_s": time.process_time(),
            **facts,
        }
        print(json.dumps(row), flush=True)
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with self.arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def publish(self) -> None:
        for name in (POLICY, ANCHOR):
            self.engine.publish(name, self.learner.pair.merged_weights(name))


class RunningMean:
    """The mean of the policy's factors over steps; what each step's noise adds goes down in it."""

    def __init__(self, pair: LoraPair) -> None:
        self._pair = pair
        self._sums = {k: torch.zeros_like(v) for k, v in pair.tensors(POLICY).items()}
        self.count = 0

    def add(self) -> None:
        self.count += 1
        for name, value in self._pair.tensors(POLICY).items():
            self._sums[name] += value

    @contextmanager
    def in_place_of_the_policy(self) -> Iterator[None]:
        kept = {name: value.clone() for name, value in self._pair.tensors(POLICY).items()}
        self._pair.load_tensors(POLICY, {k: v / self.count for k, v in self._sums.items()})
        yield
        self._pair.load_tensors(POLICY, kept)


def efficiency(u_P: np.ndarray, kl_P: np.ndarray) -> float:
    u = float(u_P.mean())
    return u / (1 - u) / effective_n_from_kl(float(kl_P.mean()))


async def draw(bench: Bench) -> None:
    """Winners, one line each: `[prompt token ids, winner's token ids]`."""
    wanted = bench.arguments.rows
    prompts = [q.messages for q in training_questions(wanted, QUESTIONS_SEED)]
    with gzip.open(winners_file(bench.arguments), "wt") as file:
        for start in range(0, wanted, CHUNK):
            chunk = prompts[start : start + CHUNK]
            drawn = await draw_scored(
                bench.engine, "v0000", chunk, SAMPLING.params(), BEST_OF, start,
                Scorers(bench.scorer, None, None),
            )  # fmt: skip
            for generation, rewards in zip(drawn.generations, drawn.rewards_PS, strict=True):
                best = generation.completions[int(rewards.argmax())]
                row = [list(generation.prompt_token_ids), list(best.token_ids)]
                file.write(json.dumps(row) + "\n")
            print(f"{start + len(chunk)} of {wanted}", flush=True)


async def ceiling(bench: Bench) -> None:
    """Maximum likelihood on the winners, one epoch unless told otherwise."""
    config, arguments = bench.config, bench.arguments
    with gzip.open(winners_file(arguments), "rt") as file:
        rows = [TokenRow(*map(tuple, json.loads(line))) for line in file]
    num_steps = math.ceil(config.winners.epochs * len(rows) / config.winners.rows_per_step)
    bench.learner.begin("winners", num_steps)
    batches = epochs_of(rows, config.winners.rows_per_step, arguments.seed)
    for _ in range(num_steps):
        bench.learner.learn_from_winners(next(batches))
    bench.learner.set_anchor()
    torch.save(bench.learner.pair.tensors(POLICY), arguments.work / f"ceiling-{arguments.seed}.pt")
    await bench.evaluate(POLICY, "ceiling", rows=len(rows), set=arguments.set)


async def jbond(bench: Bench) -> None:
    """Steps of the objective on prompts of their own."""
    config, arguments = bench.config, bench.arguments
    if not arguments.from_reference:
        state = torch.load(arguments.work / f"{arguments.init or f'ceiling-{arguments.seed}'}.pt")
        scaled = {k: v * arguments.init_scale if "lora_B" in k else v for k, v in state.items()}
        bench.learner.pair.load_tensors(POLICY, scaled)
        if not arguments.reference_as_anchor:
            bench.learner.set_anchor()
    bench.learner.begin("rollouts")
    count = config.prompts_per_step
    questions = training_questions(count * arguments.steps, QUESTIONS_SEED + 1 + arguments.seed)
    policy, anchor = samples_per_prompt(config.objective)
    mean = RunningMean(bench.learner.pair)
    for step in range(arguments.steps):
        bench.publish()
        groups, _ = await collect(
            bench.engine, bench.scorer,
            [q.messages for q in questions[step * count : (step + 1) * count]],
            SAMPLING.params(), num_policy_samples=policy, num_anchor_samples=anchor,
            seed=derived_seed(arguments.seed, step),
        )  # fmt: skip
        bench.learner.learn_from_rollouts(groups)
        if step >= arguments.average_from:
            mean.add()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            facts = {"step": step + 1, "init": arguments.init, "set": arguments.set}
            for name in (POLICY, ANCHOR):
                await bench.evaluate(name, f"jbond {name}", **facts)
                tensors = bench.learner.pair.tensors(name)
                torch.save(tensors, arguments.work / f"jbond-{name}-{arguments.seed}.pt")
            if mean.count:
                with mean.in_place_of_the_policy():
                    facts["averaged"] = mean.count
                    await bench.evaluate(POLICY, "jbond mean", **facts)
                    tensors = bench.learner.pair.tensors(POLICY)
                    torch.save(tensors, arguments.work / f"jbond-mean-{arguments.seed}.pt")


async def average(bench: Bench) -> None:
    """The mean of what `--of` names, times each `--scale`, as one adapter of all their ranks.

    `--set lora.rank=…` and `lora.alpha` have to be those of all together. The mean itself is
    kept as `--save`.
    """
    arguments = bench.arguments
    mean = average_adapters([torch.load(arguments.work / f"{name}.pt") for name in arguments.of])
    torch.save(mean, arguments.work / f"{arguments.save}.pt")
    for scale in arguments.scale:
        scaled = {k: v * scale if "lora_B" in k else v for k, v in mean.items()}
        bench.learner.pair.load_tensors(POLICY, scaled)
        await bench.evaluate(POLICY, "average", of=arguments.of, scale=scale)


def winners_file(arguments: argparse.Namespace) -> Path:
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments.work / "winners.jsonl.gz"


async def run(arguments: argparse.Namespace) -> None:
    config = with_settings(demo_config()["trainer"], arguments.set)
    torch.set_num_threads(config.threads)
    base, tokenizer = load_policy(worlds.policy_path(), "float32", "cpu")
    torch.manual_seed(arguments.seed)
    learner = Learner(LoraPair(base, config.lora), config, SAMPLING)
    engine = LocalEngine.over(
        learner.pair.base, tokenizer, max_rows=config.rollout_rows, max_context_tokens=512,
        name="demo",
    )  # fmt: skip
    await engine.start()
    scorer = build_scorer(ClassifierScorerConfig(path=worlds.proxy_path()))
    await scorer.start()
    bench = Bench(arguments, config, engine, learner, scorer)
    steps = {
        "draw": draw,
        "ceiling": ceiling,
        "jbond": jbond,
        "best-of-n": Bench.best_of_n,
        "average": average,
    }
    await steps[arguments.step_name](bench)
    await engine.close()
    await scorer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step_name", choices=["draw", "best-of-n", "ceiling", "jbond", "average"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kl-efficiency")
    parser.add_argument("--out", type=Path, default=Path("bench/results/kl_efficiency/rows.jsonl"))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=75)
    parser.add_argument("--from-reference", action="store_true")
    parser.add_argument("--init", help="what jbond begins with, instead of the seed's ceiling")
    parser.add_argument("--of", nargs="+", default=[], help="what average averages")
    parser.add_argument("--init-scale", type=float, default=1.0, help="of what --init names")
    parser.add_argument("--reference-as-anchor", action="store_true", help="jbond: at its start")
    parser.add_argument("--scale", nargs="+", type=float, default=[1.0], help="of the mean update")
    parser.add_argument("--save", default="average")
    parser.add_argument("--average-from", type=int, default=10**9, help="jbond: step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
