"""The memory estimate of a run beside what the run took: `python -m bench.memory --model DIR`.

Runs some steps and an evaluation of J-BOND in this process, on prompts of the given length, and
compares the largest resident size with that before anything was loaded (Linux, CPU).
"""

import argparse
import json
import tempfile
from pathlib import Path

from bond_core.config import BondConfig
from bond_trainer import train
from bond_trainer.memory import peak_bytes
from bond_trainer.memory_report import estimate_parts, table


def resident_mib(field: str) -> float:
    """`VmRSS` now or `VmHWM`, its largest value so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) / 1024


def letters(prompts: list[object], completions: list[list[dict[str, str]]], **_: object):
    """A reward that takes no memory."""
    return [float(completion[-1]["content"].count("e")) for completion in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--words", type=int, default=40, help="words of every prompt")
    parser.add_argument(
        "--prompt-tokens", type=int, default=512, help="their bound in the settings"
    )
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    trainer = {
        "max_prompt_tokens": args.prompt_tokens,
        "micro_batch_tokens": args.micro_batch_tokens,
        "evaluation": {"every_steps": args.steps, "num_prompts": 32},
        "nice": 10,
    }
    sampling = {"max_tokens": args.answer_tokens}
    with tempfile.TemporaryDirectory() as folder:
        config = BondConfig.model_validate(
            {
                "model": {"path": args.model},
                "scorer": {"type": "function", "function": "given:function"},
                "sampling": sampling,
                "trainer": trainer,
                "data_dir": folder,
            }
        )
        parts = estimate_parts(config)
        prompts = [f"{number} " + "parcel " * args.words for number in range(600)]
        before = resident_mib("VmRSS")
        train(
            args.model, letters, prompts, out_dir=folder, max_steps=args.steps,
            sampling=sampling, progress=False, **trainer,
        )  # fmt: skip
        grown = resident_mib("VmHWM") - before
    print(table(parts))
    estimated = peak_bytes(parts) / 2**20
    print(json.dumps({"before": before, "grown": grown, "estimated": estimated}))


if __name__ == "__main__":
    main()
