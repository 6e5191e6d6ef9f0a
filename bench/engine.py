"""What vLLM gives through our engine: tokens per second, swaps, scores, and our own overhead.

    bond vllm --run                       # in another terminal: the servers of the demo world
    python bench/engine.py --url http://127.0.0.1:8101 --scorer-url http://127.0.0.1:8102 \\
        --hardware "2 cores of ..., no GPU" --out bench/results/engine/cpu.json

Figures are medians over repetitions within one run, all repetitions are kept. `alone` is vLLM asked
by a bare HTTP client with the same body; `engine` the same request through `VllmEngine`; they
alternate, so that a noisy machine is noisy for both. Rows `base` name the base model, rows
`adapter` a LoRA of rank 16 on all linear layers. The server is used by nobody else meanwhile.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import torch

from bond_core.config import LoraConfig, ModelConfig, PoolingScorerConfig, VllmEngineConfig
from bond_core.engines.local.loading import load_policy
from bond_core.engines.vllm import VllmEngine, wire
from bond_core.rewards import build_scorer
from bond_core.types import Message, SamplingParams
from bond_demo import worlds
from bond_demo.prompts import training_questions
from bond_trainer.lora import POLICY, LoraPair

CANDIDATES = (1, 4, 16, 64)
TOKENS = 32
"""Of every answer: the end token is forbidden, so that all rows do the same work."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one quantity over repetitions."""

    median: float
    low: float
    high: float
    raw: list[float]

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), values)


async def timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


class Bench:
    """One server, one adapter, one set of prompts."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        self.world = worlds.world_path()
        self.prompts = [question.messages for question in training_questions(256, 99)]
        self.params = SamplingParams(max_tokens=TOKENS, logit_bias={end_token(self.world): -100.0})
        self.versions = 0

    async def engine(self, reference_as: str) -> VllmEngine:
        config = VllmEngineConfig(
            urls=(self.arguments.url,), api_key=self.arguments.api_key, reference_as=reference_as
        )
        model = ModelConfig(path=self.world / "policy", name="demo")
        engine = VllmEngine(config, model, adapters_dir=self.work / "adapters")
        await engine.start()
        return engine

    def adapter(self) -> Path:
        """A fresh random LoRA: new weights, new name, new path."""
        self.versions += 1
        path = self.work / f"lora-{self.versions}"
        base, _ = load_policy(self.world / "policy", "float32", "cpu")
        torch.manual_seed(self.versions)
        pair = LoraPair(base, LoraConfig(rank=16, alpha=32))
        with torch.no_grad():
            for factor in pair.factors(POLICY).values():
                factor.normal_(std=0.01)
        pair.save(POLICY, path)
        return path

    async def throughput(self, base: VllmEngine, tuned: VllmEngine) -> dict[str, Any]:
        """Tokens per second of one request after another (`alone`) and of 64 rows at once."""
        found: dict[str, Any] = {}
        for n in CANDIDATES:
            at_once = max(1, 64 // n)
            values: dict[str, list[float]] = {}
            for _ in range(self.arguments.repeat):
                for name, engine, version in (
                    ("base", base, "v0000"),
                    ("adapter", tuned, "v0001"),
                ):
                    for requests in dict.fromkeys((1, at_once)):
                        seconds = await timed(self.draw(engine, version, n, requests))
                        rate = n * requests * TOKENS / seconds
                        values.setdefault(f"{name}, {requests} at once", []).append(rate)
            found[f"n={n}"] = {name: asdict(Spread.of(rates)) for name, rates in values.items()}
            print(n, {name: round(statistics.median(r)) for name, r in values.items()}, flush=True)
        return found

    async def draw(self, engine: VllmEngine, version: str, n: int, requests: int) -> None:
        await asyncio.gather(
            *(engine.generate(version, self.prompts[i], self.params, n=n) for i in range(requests))
        )

    async def overhead(self, engine: VllmEngine) -> dict[str, Any]:
        """The same request by a bare client and by the engine, alternating."""
        found: dict[str, Any] = {}
        headers = {"authorization": f"Bearer {self.arguments.api_key}"}
        async with aiohttp.ClientSession(headers=headers) as session:

            async def bare(n: int) -> None:
                _, body = wire.request(
                    engine._versions.base_name, self.prompts[0], self.params, n, priority=0
                )
                async with session.post(
                    f"{self.arguments.url}/v1/chat/completions", json=body
                ) as answer:
                    json.loads(await answer.text())

            for n in (1, 8):
                alone: list[float] = []
                ours: list[float] = []
                for _ in range(20 * self.arguments.repeat):
                    alone.append(await timed(bare(n)))
                    ours.append(
                        await timed(engine.generate("v0000", self.prompts[0], self.params, n=n))
                    )
                differences = [b - a for a, b in zip(alone, ours, strict=True)]
                found[f"n={n}"] = {
                    "alone_ms": asdict(Spread.of([1000 * s for s in alone])),
                    "engine_ms": asdict(Spread.of([1000 * s for s in ours])),
                    "added_ms_median": 1000 * statistics.median(differences),
                    "cpu_ms_per_request": 1000 * await self.own_cpu(engine, n),
                }
                print(f"overhead n={n}", found[f"n={n}"]["added_ms_median"], flush=True)
        return found

    async def own_cpu(self, engine: VllmEngine, n: int) -> float:
        """Processor seconds of this process for one request, client and parsing included."""
        before, requests = time.process_time(), 50
        for _ in range(requests):
            await engine.generate("v0000", self.prompts[0], self.params, n=n)
        return (time.process_time() - before) / requests

    async def swaps(self, engine: VllmEngine) -> dict[str, Any]:
        """From a directory on disk to the first answer of the new version, and dropping the old."""
        load: list[float] = []
        first: list[float] = []
        drop: list[float] = []
        for number in range(2, 2 + 4 * self.arguments.repeat):
            version = f"v{number:04d}"
            path = self.adapter()
            load.append(1000 * await timed(engine.load_adapter(version, path)))
            one = SamplingParams(max_tokens=1)
            first.append(1000 * await timed(engine.generate(version, self.prompts[0], one)))
            drop.append(1000 * await timed(engine.drop_adapter(version)))
        return {
            "load_ms": asdict(Spread.of(load)),
            "first_token_after_load_ms": asdict(Spread.of(first)),
            "drop_ms": asdict(Spread.of(drop)),
        }

    async def given_tokens(self, engine: VllmEngine) -> dict[str, Any]:
        """Log-probabilities of 8 given answers of one prompt."""
        drawn = await engine.generate("v0000", self.prompts[0], self.params, n=8)
        tokens = [completion.token_ids for completion in drawn.completions]
        seconds = [
            await timed(engine.token_logprobs("v0000", drawn.prompt_token_ids, tokens))
            for _ in range(5 * self.arguments.repeat)
        ]
        return {"eight_answers_ms": asdict(Spread.of([1000 * s for s in seconds]))}

    async def scores(self) -> dict[str, Any]:
        """Scoring the candidates of one Best-of-N on the pooling server."""
        config = PoolingScorerConfig(
            url=self.arguments.scorer_url,
            api_key=self.arguments.api_key,
            path=self.world / "proxy",
        )
        scorer = build_scorer(config)
        await scorer.start()
        found: dict[str, Any] = {}
        prompt = [Message("user", "Where is my order?")]
        for n in CANDIDATES:
            seconds: list[float] = []
            for repetition in range(5 * self.arguments.repeat):
                texts = [f"Sorry, order {repetition}-{i} is on its way." for i in range(n)]
                seconds.append(await timed(scorer.score([prompt] * n, texts)))
            found[f"n={n}"] = asdict(Spread.of([1000 * s for s in seconds]))
        await scorer.close()
        return found


def end_token(world: Path) -> int:
    config = json.loads((world / "policy" / "config.json").read_text())
    end = config["eos_token_id"]
    return int(end[0] if isinstance(end, list) else end)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        base, tuned = await bench.engine("base"), await bench.engine("adapter")
        await tuned.load_adapter("v0001", bench.adapter())
        await bench.draw(base, "v0000", 4, 2)
        await bench.draw(tuned, "v0001", 4, 2)
        found: dict[str, Any] = {
            "hardware": arguments.hardware,
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "vllm": await base._running().replicas[0].connection.get("/version"),
            "tokens_per_answer": TOKENS,
            "tokens_per_s": await bench.throughput(base, tuned),
            "overhead": await bench.overhead(base),
            "swaps": await bench.swaps(tuned),
            "given_tokens": await bench.given_tokens(base),
        }
        if arguments.scorer_url:
            found["scores_ms"] = await bench.scores()
        await base.close()
        await tuned.close()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--scorer-url")
    parser.add_argument("--api-key")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
