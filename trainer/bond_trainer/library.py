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
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from bond_core.adapters import MANIFEST_FILE, read_manifest
from bond_core.config import BondConfig, ObjectiveConfig, config_of
from bond_core.errors import ConfigError
from bond_core.rewards import Scorer
from bond_core.rewards.function import FunctionScorer
from bond_trainer.progress_bar import progress_bar, wanted_by_default
from bond_trainer.prompt_files import WITHHOLDING_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    LoadedReward = tuple[PreTrainedModel, PreTrainedTokenizerBase]

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
    model: "str | Path | PreTrainedModel",
    reward: "str | Path | RewardFunction | LoadedReward",
    prompts: str | Path | Iterable[Prompt],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    objective: ObjectiveConfig | Mapping[str, Any] | None = None,
    out_dir: str | Path = "bond-training",
    max_steps: int | None = None,
    judge: "str | Path | RewardFunction | LoadedReward | None" = None,
    sampling: Mapping[str, Any] | None = None,
    best_of: int = 8,
    progress: bool | None = None,
    **trainer: Any,
) -> TrainingResult:
    """Train a LoRA adapter of a causal language model.

    `model` is a folder, or a loaded model with its `tokenizer`. `reward` (and `judge`, which only
    decides whether a version is better) is a reward model's folder, `file.py:function`, a function
    of TRL's signature `(prompts, completions, **kwargs) -> list[float]`, or a loaded reward model
    of one label with its tokenizer, `(model, tokenizer)`.

    A loaded model is copied to `out_dir/given`, once, as large as its weights; the run reads the
    copy, in the type of the model's weights, and leaves the model as it is, also in memory. Changed
    weights are another model, which an `out_dir` with checkpoints refuses.

    `prompts` are a JSON-lines file, texts, message lists, or rows with `prompt` or `messages`; rows
    of an export that may not be learned from are left out, with a warning; a tenth, by hash, is
    held out. `trainer` are the keys of the configuration's section of that name. The same `out_dir`
    goes on where it was.
    `progress` shows a memory estimate and a bar; by default where standard output is a terminal or
    a notebook's cell.

    Works inside a running event loop, as notebooks have one. Raises `ConfigError` for what cannot
    be used, `ModelLoadError` for what cannot be loaded.
    """
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}: at least 1, or None for all the prompts")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    if progress is None:
        progress = wanted_by_default()
    given: dict[str, Scorer] = {}
    settings: dict[str, Any] = {
        "model": _model_settings(model, tokenizer, out),
        "scorer": _scorer_settings(reward, "scorer", given, out),
        "sampling": dict(sampling or {}),
        "arms": {"best_of": best_of},
        "trainer": _trainer_settings(trainer, objective),
        "data_dir": out,
    }
    if judge is not None:
        settings["judge"] = _scorer_settings(judge, "judge", given, out)
    config = config_of(settings)
    file = _prompts_file(prompts, out)

    async def run(stop: asyncio.Event) -> None:
        from bond_trainer.loop import run_training

        await run_training(
            config,
            prompts_file=file,
            max_steps=max_steps,
            stop=stop,
            scorers=given,
            on_progress=listen,
        )

    if progress:
        _print_memory_estimate(config, given)
    steps = max_steps or config.trainer.max_steps
    with progress_bar(steps) if progress else nullcontext() as listen:
        _in_own_loop(run)
    result = _result(out, config)
    if not result.metrics:
        raise ConfigError(
            "nothing was learned: no batch of answers could be scored, or every prompt was left "
            "out; the log (logging.basicConfig(level='INFO')) says why"
        )
    return result


def _trainer_settings(
    trainer: Mapping[str, Any], objective: ObjectiveConfig | Mapping[str, Any] | None
) -> dict[str, Any]:
    if objective is None:
        return dict(trainer)
    plain = isinstance(objective, Mapping)
    return {**trainer, "objective": dict(objective) if plain else objective.model_dump(mode="json")}


def _model_settings(
    source: "str | Path | PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", out: Path
) -> dict[str, Any]:
    if isinstance(source, str | Path):
        if tokenizer is not None:
            raise ConfigError(
                f"`tokenizer` is for a loaded model; that of {source} is read from its folder: "
                "leave it out"
            )
        return {"path": Path(source), "name": Path(source).resolve().name}
    from bond_trainer.loaded_models import kept_copy

    return kept_copy(source, tokenizer, out / "given", "model").settings()


def _scorer_settings(
    source: "str | Path | RewardFunction | LoadedReward",
    role: str,
    given: dict[str, Scorer],
    out: Path,
) -> dict[str, Any]:
    if isinstance(source, tuple):
        from bond_trainer.loaded_models import kept_copy

        if len(source) != 2:
            raise ConfigError(f"a loaded {role} is a pair (model, tokenizer), not {len(source)}")
        model, tokenizer = source
        copy = kept_copy(model, tokenizer, out / "given", role)
        return {"type": "classifier", "path": copy.path, "dtype": copy.dtype}
    if hasattr(source, "save_pretrained"):
        raise ConfigError(f"a loaded {role} needs its tokenizer: give a pair (model, tokenizer)")
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
        if not Path(prompts).is_file():
            raise ConfigError(
                f"there is no file {str(prompts)!r}: `prompts` is a JSON-lines file or a list of "
                "prompts; put a single text into a list"
            )
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
        kept = {key: row[key] for key in WITHHOLDING_KEYS if key in row}
        if isinstance(content, str):
            return {"prompt": content, **kept}
        if content is not None:
            return {"messages": list(content), **kept}
    elif isinstance(prompt, Sequence):
        return {"messages": [dict(message) for message in prompt]}
    raise ConfigError(
        f"prompt {number} is {prompt!r:.80}: expected a text, a list of messages, or a row with "
        "'prompt' or 'messages'"
    )


def _print_memory_estimate(config: BondConfig, given: Mapping[str, Scorer]) -> None:
    """For those who watch without having configured logging, to which it goes as well."""
    from bond_trainer.memory_report import estimate_parts, table

    text = f"memory estimate\n{table(estimate_parts(config, given.keys()))}"
    Console().print(text, markup=False, highlight=False)


def _in_own_loop(run: Callable[[asyncio.Event], Any]) -> None:
    """Run to the end in a thread of its own, whether or not this one has a running loop.

    An interrupt here (Ctrl-C, a notebook's stop) ends the run at its next step, with a checkpoint.
    """
    failed: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        running.append((asyncio.get_running_loop(), stop))
        await run(stop)

    def target() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # handed to the caller's thread
            failed.append(error)
        finally:
            finished.set()

    # an event and not `join`: until Python 3.13 an interrupted join takes the thread for ended
    finished = threading.Event()
    threading.Thread(target=target, name="bond-train").start()
    try:
        finished.wait()
    except KeyboardInterrupt:
        for loop, stop in running:
            loop.call_soon_threadsafe(stop.set)
        finished.wait()
        raise
    if failed:
        raise failed[0]


def _result(out: Path, config: BondConfig) -> TrainingResult:
    from bond_trainer.metrics_log import read_metrics

    folders = sorted(path.parent for path in config.adapters_dir.glob(f"v*/{MANIFEST_FILE}"))
    newest = folders[-1] if folders else None
    evaluation = read_manifest(newest).evaluation if newest else {}
    return TrainingResult(out, newest, evaluation, read_metrics(config.metrics_dir))
