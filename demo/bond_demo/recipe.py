"""Makes the demo world from nothing: `python -m bond_demo.recipe --out DIR`.

The stages run in order and each reads what the earlier ones wrote, so that one can be made again
by itself. Everything is seeded. The world appears at its place only when all of it is complete.
"""

import argparse
import json
import logging
import os
import shutil
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bond_core.errors import ModelLoadError
from bond_core.holdout import Split
from bond_demo.answers import draw_answer
from bond_demo.making.annotators import JUDGE_ANNOTATORS, PROXY_ANNOTATORS, collect_preferences
from bond_demo.making.language_model import save_policy, train_language_model
from bond_demo.making.measurements import ScoredSamples, measure
from bond_demo.making.model_card import model_card
from bond_demo.making.past_log import CANDIDATES, write_past_log
from bond_demo.making.reward_models import save_reward_model, train_reward_model
from bond_demo.making.scored_samples import answered_rows, draw_samples, score_samples
from bond_demo.making.tokenizer import load_tokenizer, train_tokenizer
from bond_demo.prompts import (
    GATE_PROMPTS,
    REPORT_PROMPTS,
    held_out_prompts,
    read_held_out_prompts,
    training_questions,
    write_held_out_prompts,
)
from bond_demo.rubric import flaws_in, gold_reward

_LOG = logging.getLogger(__name__)

POLICY_SEED, PROXY_SEED, JUDGE_SEED, LOG_SEED, PROMPTS_SEED, CURVE_SEED = 11, 22, 33, 44, 55, 66
"""Each stage draws its questions from a stream of its own."""

POLICY_QUESTIONS, POLICY_EPOCHS = 48_000, 3
REWARD_PROMPTS, REWARD_ANSWERS, REWARD_COMPARISONS, REWARD_EPOCHS = 4_000, 4, 6, 3
LOG_PROMPTS = 3_000
CURVE_SAMPLES = 64


def make_policy(out: Path) -> None:
    """The tokenizer and the reference policy."""
    questions = training_questions(POLICY_QUESTIONS, POLICY_SEED)
    rng = Random(POLICY_SEED)
    texts = [message.content for q in questions for message in q.messages]
    tokenizer = train_tokenizer(texts + [draw_answer(rng, question) for question in questions])
    model = train_language_model(tokenizer, questions, POLICY_EPOCHS, POLICY_SEED)
    save_policy(model, tokenizer, out / "policy")


def make_proxy(out: Path) -> None:
    """The reward model of the flawed annotators."""
    _make_reward_model(out, "proxy", PROXY_SEED)


def make_judge(out: Path) -> None:
    """The reward model of the other annotators, from preferences of its own."""
    _make_reward_model(out, "judge", JUDGE_SEED)


def make_prompts(out: Path) -> None:
    """The held-out prompts."""
    folder = out / "prompts"
    folder.mkdir(exist_ok=True)
    for split, count in ((Split.GATE, GATE_PROMPTS), (Split.REPORT, REPORT_PROMPTS)):
        prompts = held_out_prompts(split, count, PROMPTS_SEED)
        write_held_out_prompts(folder / f"{split.value}.jsonl", prompts)


def make_log(out: Path) -> None:
    """The past log."""
    policy, tokenizer = _load_policy(out)
    conversations = [q.messages for q in training_questions(LOG_PROMPTS, LOG_SEED)]
    samples = draw_samples(policy, tokenizer, conversations, CANDIDATES, LOG_SEED)
    scores = score_samples(_load_reward_model(out, "proxy"), tokenizer, samples)
    write_past_log(out / "seed_log.jsonl.gz", samples, scores)


def make_curve(out: Path) -> None:
    """The measured figures and the model card."""
    policy, tokenizer = _load_policy(out)
    proxy, judge = _load_reward_model(out, "proxy"), _load_reward_model(out, "judge")
    prompts = read_held_out_prompts(out / "prompts" / "report.jsonl")
    conversations = [prompt.messages for prompt in prompts]
    samples = draw_samples(policy, tokenizer, conversations, CURVE_SAMPLES, CURVE_SEED)
    pairs = list(zip(conversations, samples.texts, strict=True))
    figures = measure(
        ScoredSamples(
            texts=samples.texts,
            tokens=np.array([[len(drawn.token_ids) for drawn in row] for row in samples.drawn]),
            proxy=np.array(score_samples(proxy, tokenizer, samples)),
            judge=np.array(score_samples(judge, tokenizer, samples)),
            gold=np.array([[gold_reward(c, text) for text in texts] for c, texts in pairs]),
            flaws=np.array([[flaws_in(text) for text in texts] for texts in samples.texts]),
            template_held_out=np.array([prompt.template_held_out for prompt in prompts]),
        )
    )
    (out / "curve.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    card = model_card(figures, policy.num_parameters(), proxy.num_parameters())
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")


STAGES = {
    "policy": make_policy,
    "proxy": make_proxy,
    "judge": make_judge,
    "prompts": make_prompts,
    "log": make_log,
    "curve": make_curve,
}


THREADS = {"policy": 2}
"""Threads of each stage, one where not named: fixed, because they decide in which order numbers are
added, and so the last digits of all weights. One loses little, and nothing on a busy machine."""


def make_world(out: Path, stages: list[str]) -> None:
    """Run some stages, in their order, on a copy of what is at `out`, and put the copy in place."""
    work = out.with_name(f".{out.name}.making")
    shutil.rmtree(work, ignore_errors=True)
    if out.exists():
        shutil.copytree(out, work)
    work.mkdir(parents=True, exist_ok=True)
    for name, make in STAGES.items():
        if name in stages:
            started = time.monotonic()
            torch.set_num_threads(THREADS.get(name, 1))
            make(work)
            _LOG.info("stage %s: %.0f s", name, time.monotonic() - started)
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)


def _make_reward_model(out: Path, name: str, seed: int) -> None:
    policy, tokenizer = _load_policy(out)
    annotators = {"proxy": PROXY_ANNOTATORS, "judge": JUDGE_ANNOTATORS}[name]
    conversations = [q.messages for q in training_questions(REWARD_PROMPTS, seed)]
    samples = draw_samples(policy, tokenizer, conversations, REWARD_ANSWERS, seed)
    preferences = collect_preferences(
        annotators, conversations, samples.texts, REWARD_COMPARISONS, seed
    )
    rows = answered_rows(tokenizer, samples)
    model = train_reward_model(policy, rows, preferences, REWARD_EPOCHS, seed)
    save_reward_model(model, tokenizer, out / name)


def _load_policy(out: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    folder = _made(out, "policy")
    model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), load_tokenizer(folder)


def _load_reward_model(out: Path, name: str) -> LlamaForSequenceClassification:
    folder = _made(out, name)
    return LlamaForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()


def _made(out: Path, stage: str) -> Path:
    """The folder that an earlier stage wrote. Raises `ModelLoadError` naming that stage."""
    folder = out / stage
    if not folder.is_dir():
        raise ModelLoadError(f"this stage needs the {stage}; run the stage `{stage}` first")
    return folder


def main() -> None:
    """Read the command line and make the world."""
    parser = argparse.ArgumentParser(prog="python -m bond_demo.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the world")
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), default=list(STAGES),
        help="make these again, keep the rest",
    )  # fmt: skip
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Every length of batch has kernels of its own, and by default a thousand of them are kept:
    # gigabytes. Read at the first computation, so it is not too late here.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    make_world(arguments.out.resolve(), arguments.stages)


if __name__ == "__main__":
    main()
