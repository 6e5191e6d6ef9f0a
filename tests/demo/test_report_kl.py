"""The distilled arm's KL, on a small real model with a real adapter."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_models import make_policy, tiny_adapter
from transformers import AutoModelForCausalLM

from bond_core.config import BondConfig, ModelConfig, load_config
from bond_core.types import Completion, Generation, Message
from bond_demo.per_token_kl import per_token_kl
from bond_demo.sampling import SamplingPlan, draw_fresh_samples

PROMPT = (7, 30, 41)
ANSWERS = ((60, 61, 62, 63, 1), (70,), (80, 81, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("kl")
    return make_policy(folder / "policy"), tiny_adapter(folder / "v0001", seed=3)


def next_token_laws(model: torch.nn.Module, tokens: list[int], temperature: float) -> np.ndarray:
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].double()
    return (logits / temperature).softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_it_sums_the_kl_of_the_next_token_laws(
    folders: tuple[Path, Path], temperature: float
) -> None:
    policy, adapter = folders
    completions = tuple(Completion("", answer, (), "stop") for answer in ANSWERS)
    [found] = per_token_kl(
        ModelConfig(path=policy), adapter, [Generation(PROMPT, completions)], temperature
    )
    reference = AutoModelForCausalLM.from_pretrained(policy).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(policy), str(adapter)
        ).merge_and_unload()
    for value, answer in zip(found, ANSWERS, strict=True):
        tokens = [*PROMPT, *answer]
        places = range(len(PROMPT) - 1, len(tokens) - 1)
        laws = next_token_laws(merged.eval(), tokens, temperature)
        others = next_token_laws(reference, tokens, temperature)
        expected = sum(
            p * math.log(p / q)
            for place in places
            for p, q in zip(laws[place], others[place], strict=True)
        )
        assert expected > 0.01
        assert value == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def config(folders: tuple[Path, Path], tmp_path: Path) -> BondConfig:
    function = {"type": "function", "function": "bond_demo.settings:gold_rewards"}
    flags = {
        "model": {"path": folders[0]}, "scorer": function, "gold": function,
        "engine": {"type": "local", "threads": 1}, "sampling": {"max_tokens": 12},
        "data_dir": tmp_path,
    }  # fmt: skip
    return load_config(flags=flags, environ={})


async def test_fresh_samples_carry_the_kl_of_their_own_answers(
    config: BondConfig, folders: tuple[Path, Path]
) -> None:
    prompts = [(Message("user", f"where is parcel {number}?"),) for number in range(12)]
    plan = SamplingPlan(reference_samples=1, distilled_samples=8, limit_s=20.0, seed=5)
    drawn = await draw_fresh_samples(config, "v0001", folders[1], prompts, plan, lambda _: None)
    kl_PS = drawn.distilled_kl_PS
    assert kl_PS.shape == (12, 8)
    assert kl_PS.min() > 0
    assert kl_PS.std() > 0
    none = await draw_fresh_samples(config, "v0000", None, prompts, plan, lambda _: None)
    assert not none.distilled_kl_PS.any()
