"""How fast the trainer's loop is, beside TRL's RLOOTrainer on the same tiny model.

    python bench/learner.py --trl-python trl-env/bin/python     # both, alternating
    python bench/learner.py                                     # ours alone

`bench/trl-requirements.txt` says how to make that environment. Both train a LoRA (rank 16, A and B)
of the demo's policy, in float32 on as many threads, on the same prompts in the same order with the
same reward function, as many completions per prompt and one update per batch. The first steps of
each run are not counted; evaluation and checkpoints lie outside what is timed. It measures the
overhead of a loop on a tiny model and says nothing of large ones, where matrix products decide.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from learner_task import reward_file

from bond_demo import worlds
from bond_demo.prompts import training_questions

WARM_UP = 3
CONTENDERS = ("rloo", "jbond")


def ours(task: dict[str, Any], objective: str, folder: Path) -> dict[str, Any]:
    """One run in a process of its own, so that each begins alike."""
    script = Path(__file__).with_name("learner_task.py")
    return _run([sys.executable, str(script), objective], task, folder)


def trl(task: dict[str, Any], python: str, folder: Path) -> dict[str, Any]:
    return _run([python, str(Path(__file__).with_name("learner_trl.py"))], task, folder)


def _run(command: list[str], task: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    task_file, result = folder / "task.json", folder / "result.json"
    task_file.write_text(json.dumps({**task, "work": str(folder / "work")}))
    environ = {**os.environ, "OMP_NUM_THREADS": str(task["threads"]), "TOKENIZERS_PARALLELISM": "0"}
    done = subprocess.run(
        [*command, str(task_file), str(result)], env=environ, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return measured(json.loads(result.read_text()), task)


def measured(found: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """Rates over the steps after the warm-up, from the times at which steps ended."""
    ends = found["ends"]
    steps, seconds = len(ends) - WARM_UP, ends[-1] - ends[WARM_UP - 1]
    asked = task["prompts_per_step"] * task["completions_per_prompt"]
    if any(count != asked for count in found.get("completions", [])):
        raise SystemExit(f"a step had other than {asked} completions: {found['completions']}")
    completions = asked * steps
    length = statistics.fmean(found["mean_lengths"][WARM_UP:])
    rates = {
        "completions_per_s": completions / seconds,
        "generated_tokens_per_s": completions * length / seconds,
        "seconds_per_step": seconds / steps,
        "mean_length": length,
    }
    shares = found.get("seconds")
    if shares:
        total = {name: sum(values[WARM_UP:]) for name, values in shares.items()}
        rates["shares"] = {name: value / seconds for name, value in total.items()}
        rates["shares"]["other"] = 1 - sum(rates["shares"].values())
        rates["trained_tokens_per_s"] = sum(found["trained_tokens"][WARM_UP:]) / total["train"]
    return {**rates, "steps_timed": steps, "versions": found["versions"]}


def table(rounds: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over the rounds; the ratio to TRL is of the same round, its range beside it."""
    lines = [f"{'':8} {'compl/s':>9} {'tokens/s':>9} {'s/step':>7} {'length':>7}  ratio to TRL"]
    for name, runs in rounds.items():
        middle = {
            key: statistics.median(run[key] for run in runs)
            for key in (
                "completions_per_s", "generated_tokens_per_s", "seconds_per_step", "mean_length",
            )
        }  # fmt: skip
        line = "{:8} {:9.1f} {:9.0f} {:7.2f} {:7.1f}".format(name, *middle.values())
        if "trl" in rounds and name != "trl":
            ratios = [
                run["completions_per_s"] / other["completions_per_s"]
                for run, other in zip(runs, rounds["trl"], strict=True)
            ]
            line += f"  {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(line)
    for name, runs in rounds.items():
        if "shares" in runs[0]:
            said = ", ".join(
                f"{part} {statistics.median(run['shares'][part] for run in runs):.0%}"
                for part in runs[0]["shares"]
            )
            lines.append(f"{name}: {said}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", help="the Python of an environment that has TRL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=13, help=f"{WARM_UP} of them are warm-up")
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--completions-per-prompt", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/learner/cpu.json"))
    arguments = parser.parse_args()
    questions = training_questions(arguments.prompts_per_step * arguments.steps * 2, 31)
    task = {
        "model": str(worlds.policy_path()),
        "prompts": [[m.as_dict() for m in q.messages] for q in questions],
        "prompts_per_step": arguments.prompts_per_step,
        "completions_per_prompt": arguments.completions_per_prompt,
        "max_tokens": arguments.max_tokens,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "beta": 0.05,
        "seed": 0,
    }
    rounds: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as work:
        names = [*(["trl"] if arguments.trl_python else []), *CONTENDERS]
        for number in range(arguments.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                folder = Path(work) / f"{name}-{number}"
                if name == "trl":
                    found = trl(task, arguments.trl_python, folder)
                else:
                    found = ours(task, name, folder)
                rounds.setdefault(name, []).append(found)
            print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    result = {
        "what": "loop overhead on a tiny model",
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
        },
        "task": {key: value for key, value in task.items() if key not in ("prompts", "model")},
        "reward": reward_file().read_text(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "rounds": rounds,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rounds))


if __name__ == "__main__":
    main()
