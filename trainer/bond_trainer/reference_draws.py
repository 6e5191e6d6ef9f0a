"""Samples of the reference on the held-out prompts, drawn once and kept.

They never change while model, sampling, prompts and scorers stay the same, so a restarted trainer
reads them back: they give every quantile and win rate, and Best-of-N's reward.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bond_core.engines.base import Engine
from bond_core.types import REFERENCE_VERSION, Message, SamplingParams
from bond_trainer.draws import Draws, FloatArray, Scorers, draw_scored
from bond_trainer.variety import Variety

_FORMAT = 2
"""Of the kept files; others are drawn anew."""


async def reference_draws(
    engine: Engine,
    prompts: Sequence[tuple[Message, ...]],
    params: SamplingParams,
    num_samples: int,
    seed: int,
    scorers: Scorers,
    cache_dir: Path,
    sources: Sequence[Path] = (),
) -> Draws:
    """The cached draws for exactly these circumstances, drawn now if there are none.

    Model and scorers count by what they were when they were loaded. `sources` are the folders and
    files that they were read from: if one of them is written anew, the draws are made anew too.
    """
    fingerprint = _fingerprint(engine, prompts, params, num_samples, seed, scorers, sources)
    path = cache_dir / f"reference-{fingerprint}.json"
    if path.exists():
        return _read(path)
    draws = await draw_scored(
        engine, REFERENCE_VERSION, prompts, params, num_samples, seed, scorers
    )
    if scorers.gold is None or draws.gold_PS is not None:  # a gap is not worth keeping
        _write(path, draws)
    return draws


def _fingerprint(
    engine: Engine,
    prompts: Sequence[tuple[Message, ...]],
    params: SamplingParams,
    num_samples: int,
    seed: int,
    scorers: Scorers,
    sources: Sequence[Path],
) -> str:
    circumstances = [
        _FORMAT,
        engine.info.base_model,
        engine.info.base_revision,
        engine.info.tokenizer_sha256,
        [[m.as_dict() for m in messages] for messages in prompts],
        [params.max_tokens, params.temperature, params.top_p],
        num_samples,
        seed,
        [s.identity if s else None for s in (scorers.scorer, scorers.judge, scorers.gold)],
        [_written(source) for source in sources],
    ]
    text = json.dumps(circumstances, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(source: Path) -> list[list[object]]:
    """Name, size and time of every file of a source; contents may be many gigabytes."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _write(path: Path, draws: Draws) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "rewards": draws.rewards_PS.tolist(),
        "judge": _listed(draws.judge_PS),
        "gold": _listed(draws.gold_PS),
        "num_tokens": draws.num_tokens_PS.tolist(),
        "distinct_share": draws.distinct_share,
        "truncated_share": draws.truncated_share,
        "variety": asdict(draws.variety),
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values))
    temporary.rename(path)


def _read(path: Path) -> Draws:
    values = json.loads(path.read_text())
    return Draws(
        rewards_PS=np.array(values["rewards"]),
        judge_PS=_array(values["judge"]),
        gold_PS=_array(values["gold"]),
        num_tokens_PS=np.array(values["num_tokens"]),
        distinct_share=values["distinct_share"],
        truncated_share=values["truncated_share"],
        variety=Variety(**values["variety"]),
    )


def _listed(values: FloatArray | None) -> list[list[float]] | None:
    return None if values is None else values.tolist()


def _array(values: list[list[float]] | None) -> FloatArray | None:
    return None if values is None else np.array(values)
