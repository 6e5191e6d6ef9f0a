"""Training from a script or a notebook: `train`.

It is the trainer that `bond train --prompts` runs, with its parts given as Python values: no
gateway, and everything it keeps in one folder.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bond_core.adapters import MANIFEST_FILE, read_manifest
from bond_core.config import BondConfig, ObjectiveConfig
from bond_core.errors import ConfigError
from bond_core.rewards import Scorer
from bond_core.rewards.function import FunctionScorer
from bond_trainer.progress_bar import progress_bar, wanted_by_default

RewardFunction = Callable[..., Any]
Prompt = str | Sequence[Mapping[str, str]] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run left behind."""

    out_dir: Path
    adapter: Path | None
    """The newest version's folder, which PEFT loads; None if none was evaluated."""
    evaluation: Mapping[str, Any]
    """Of that version, on the held-out prompts."""
    metrics: Sequence[Mapping[str, Any]]
    """The rows of `metrics.jsonl`."""


def train(
    model: str | Path,
    reward: str | Path | RewardFunction,
    prompts: str | Path | Iterable[Prompt],
    *,
    objective: ObjectiveConfig | None = None,
    out_dir: str | Path = "bond-training",
    max_steps: int | None = None,
    judge: str | Path | RewardFunction | None = None,
    sampling: Mapping[str, Any] | None = None,
    best_of: int = 8,
    progress: bool | None = None,
    **trainer: Any,
) -> TrainingResult:
    """Train a LoRA adapter of a causal language model.

    `model` is a folder. `reward` (and `judge`, which only decides whether a version is better) is a
    reward model's folder, `file.py:function`, or a function of TRL's signature
    `(prompts, completions, **kwargs) -> list[float]`. `prompts` are a JSON-lines file, texts,
    message lists, or rows with `prompt` or `messages`; a tenth, by hash, is held out. `trainer` are
    the keys of the configuration's section of that name. The same `out_dir` goes on where it was.
    `progress` shows a bar; by default where standard output is a terminal or a notebook's cell.

    Works inside a running event loop, as notebooks have one. Raises `ConfigError` for what cannot
    be used, `ModelLoadError` for what cannot be loaded.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    given: dict[str, Scorer] = {}
    settings: dict[str, Any] = {
        "model": {"path": Path(model), "name": Path(model).resolve().name},
        "scorer": _scorer_settings(reward, "scorer", given),
        "sampling": dict(sampling or {}),
        "arms": {"best_of": best_of},
        "trainer": dict(trainer),
        "data_dir": out,
    }
    if judge is not None:
        settings["judge"] = _scorer_settings(judge, "judge", given)
    if objective is not None:
        settings["trainer"]["objective"] = objective.model_dump(mode="json")
    config = BondConfig.model_validate(settings)
    file = _prompts_file(prompts, out)

    async def run() -> None:
        from bond_trainer.loop import run_training

        await run_training(
            config, prompts_file=file, max_steps=max_steps, scorers=given, on_progress=listen
        )

    shown = wanted_by_default() if progress is None else progress
    steps = max_steps or config.trainer.max_steps
    with progress_bar(steps) if shown else nullcontext() as listen:
        _in_own_loop(run)
    return _result(out, config)


def _scorer_settings(
    source: str | Path | RewardFunction, role: str, given: dict[str, Scorer]
) -> dict[str, Any]:
    if callable(source):
        scorer = FunctionScorer.of(source)
        given[role] = scorer
        return {"type": "function", "function": "given:function"}
    text = str(source)
    if ":" in text and not Path(text).exists():
        return {"type": "function", "function": text}
    return {"type": "classifier", "path": Path(text)}


def _prompts_file(prompts: str | Path | Iterable[Prompt], out: Path) -> Path:
    """The file itself, or one written from the prompts."""
    if isinstance(prompts, str | Path):
        return Path(prompts)
    rows = [_row(prompt, number) for number, prompt in enumerate(prompts)]
    file = out / "prompts.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def _row(prompt: Prompt, number: int) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, Mapping):
        row = cast(Mapping[str, Any], prompt)
        content = row.get("messages", row.get("prompt"))
        if isinstance(content, str):
            return {"prompt": content}
        if content is not None:
            return {"messages": list(content)}
    elif isinstance(prompt, Sequence):
        return {"messages": [dict(message) for message in prompt]}
    raise ConfigError(
        f"prompt {number} is {prompt!r:.80}: expected a text, a list of messages, or a row with "
        "'prompt' or 'messages'"
    )


def _in_own_loop(run: Callable[[], Any]) -> None:
    """Run to the end in a thread of its own, whether or not this one has a running loop."""
    failed: list[BaseException] = []

    def target() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # handed to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=target, name="bond-train")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _result(out: Path, config: BondConfig) -> TrainingResult:
    from bond_trainer.metrics_log import read_metrics

    folders = sorted(path.parent for path in config.adapters_dir.glob(f"v*/{MANIFEST_FILE}"))
    newest = folders[-1] if folders else None
    evaluation = read_manifest(newest).evaluation if newest else {}
    return TrainingResult(out, newest, evaluation, read_metrics(config.metrics_dir))
