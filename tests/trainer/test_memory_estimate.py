"""The memory estimate: by hand for a tiny model, against the bytes of real parts, and the words."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import make_reward
from tiny_training import config_of, prompts_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bond_core.config import BondConfig
from bond_core.errors import ModelLoadError
from bond_trainer import run_training
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY, LoraPair
from bond_trainer.memory import (
    ModelShape,
    Part,
    Workload,
    learning_bytes,
    peak_bytes,
    sampling_bytes,
    training_parts,
)
from bond_trainer.memory_available import available_bytes
from bond_trainer.memory_report import estimate_parts, shape_of, shortage, table, workload_of

MIB = 2**20
# per layer: q, k, v, o, gate, up, down of a width 64, two heads of 32, one of keys and values
LAYER = ((64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64))
SHAPE = ModelShape(
    # embeddings and head, two layers with two norms each, the last norm
    num_parameters=2 * 300 * 64 + 2 * (36_864 + 2 * 64) + 64,
    weight_bytes=4,
    num_layers=2,
    hidden=64,
    intermediate=128,
    num_heads=2,
    num_key_value_heads=1,
    head_size=32,
    vocabulary=300,
    adapted=LAYER * 2,
)
WORK = Workload(
    rank=4,
    freeze_a=True,
    prompts_per_step=2,
    samples_per_prompt=5,
    prompt_tokens=20,
    answer_tokens=12,
    micro_batch_tokens=100,
    rollout_rows=160,
    evaluation_rows=8,
    chunk_elements=3000,
)


def bytes_of(tensors: list[Tensor]) -> int:
    """Shared storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_the_shape_is_read_without_weights(tiny_policy_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_policy_path))
    assert shape_of(model, "float32", "all-linear") == SHAPE
    assert shape_of(model, "auto").weight_bytes == 4
    assert shape_of(model, "bfloat16", ["q_proj"]) == replace(
        SHAPE, weight_bytes=2, adapted=((64, 64),) * 2
    )


def test_parts_by_hand() -> None:
    sizes = {part.name: part.num_bytes for part in training_parts(SHAPE, WORK)}
    assert sizes == {
        "model": 112_448 * 4,
        "adapters": 4 * 4 * (1024 + 2 * 1024),  # one A, two B
        "gradients": 4 * 4 * 1024,
        "optimiser": 2 * 4 * 4 * 1024 + 14 * 4,
        "merged versions": 3 * 73_728 * 4,
        "publishing": 2 * 73_728 * 4,
        "sampling": 2 * 10 * 32 * (2 * 2 * 32) * 4 + 4 * 10 * 300 * 4,
        "learning": 1_552_000,
    }
    # 100 tokens of 2 * (1536 + 1024 + 2048) + 224, keys and values of 100 + 10 * 20 columns,
    # 4 tensors of the width 128 for one layer, 8 chunks of 10 * 300 logits
    assert sizes["learning"] == 100 * 9440 + 300 * 1024 + 204_800 + 96_000


def test_both_factors_trained() -> None:
    sizes = {p.name: p.num_bytes for p in training_parts(SHAPE, replace(WORK, freeze_a=False))}
    assert sizes["adapters"] == 4 * 4 * 4 * 1024
    assert sizes["gradients"] == 2 * 4 * 4 * 1024
    assert sizes["optimiser"] == 2 * 2 * 4 * 4 * 1024 + 28 * 4
    inputs_per_token = 4 * 1024
    assert sizes["learning"] == learning_bytes(SHAPE, WORK) + 100 * inputs_per_token


def test_what_bounds_a_phase() -> None:
    assert WORK.batch_tokens == 100
    assert replace(WORK, micro_batch_tokens=10).batch_tokens == 80  # a prompt and its answers
    assert replace(WORK, micro_batch_tokens=10**6).batch_tokens == 160  # the whole step
    assert WORK.running_rows == 10
    assert replace(WORK, evaluation_rows=1000).running_rows == 160
    fewer = replace(WORK, evaluation_rows=1000, rollout_rows=40)
    assert sampling_bytes(SHAPE, fewer) == 4 * sampling_bytes(SHAPE, WORK)


def test_passing_parts_add_up_on_a_cpu_and_share_a_pool_elsewhere() -> None:
    held = [Part("a", 10), Part("b", 5, device="cuda")]
    passing = [Part(name, size, passing=True) for name, size in (("c", 7), ("d", 9))]
    assert peak_bytes(held) == 15
    assert peak_bytes([*held, *passing]) == 31
    on_device = [replace(part, device="cuda") for part in passing]
    assert peak_bytes([*held, *on_device]) == 24
    assert peak_bytes([*held, *passing, *on_device]) == 40


@pytest.mark.parametrize("freeze_a", [True, False])
def test_held_parts_are_those_of_the_real_objects(
    tiny_policy_path: Path, tmp_path: Path, freeze_a: bool
) -> None:
    lora = {"rank": 4, "alpha": 8, "freeze_a": freeze_a}
    config = config_of(tmp_path, tiny_policy_path, lora=lora)
    sizes = {part.name: part.num_bytes for part in estimate_parts(config)}
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    assert bytes_of(list(base.parameters())) == sizes["model"]
    pair = LoraPair(base, config.trainer.lora)
    learner = Learner(pair, config.trainer, config.sampling)
    learner.begin("winners", 1)
    learner.learn_from_winners([TokenRow((3, 20), (40, 50, 1))])
    factors = [*pair.tensors(POLICY).values(), *pair.tensors(ANCHOR).values()]
    assert bytes_of(factors) == sizes["adapters"]
    gradients = [f.grad for f in pair.factors(POLICY).values() if f.grad is not None]
    assert bytes_of(gradients) == sizes["gradients"]
    states = learner.state()["optimizer"]["state"].values()
    moments = [value for state in states for value in state.values()]
    assert bytes_of(moments) == sizes["optimiser"]
    merged = bytes_of(list(pair.merged_weights(POLICY).values()))
    assert 3 * merged == sizes["merged versions"]
    assert 2 * merged == sizes["publishing"]


def test_what_a_configuration_asks_for(tiny_policy_path: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    work = workload_of(config, 10_000)
    assert (work.prompt_tokens, work.answer_tokens) == (512, 16)
    assert (work.samples_per_prompt, work.evaluation_rows) == (5, 16 * 16)
    assert workload_of(config, 256).prompt_tokens == 240  # the model has 256 positions
    reward = make_reward(tmp_path / "reward")
    settings = config.model_dump(mode="json")
    settings["judge"] = {"type": "classifier", "path": str(reward)}
    judged = BondConfig.model_validate(settings)
    names = [part.name for part in estimate_parts(judged)]
    assert names[-2:] == ["judge", "scoring by judge"]
    assert "judge" not in [part.name for part in estimate_parts(judged, given={"judge"})]
    assert "scorer" not in names  # a function takes nothing that can be known
    (tmp_path / "reward" / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(ModelLoadError, match="cannot be loaded as a reward model"):
        estimate_parts(judged)


def test_the_table_and_the_warning() -> None:
    parts = [
        Part("model", 3 * 1024 * MIB, ("model.dtype",)),
        Part("adapters", 5 * MIB, ("trainer.lora.rank",)),
        Part("sampling", 100 * MIB, ("trainer.rollout_rows",), passing=True),
        Part("learning", 1024 * MIB, ("trainer.micro_batch_tokens",), passing=True),
        Part("judge", 1, device="cuda:0"),
    ]
    assert table(parts[:4]).splitlines() == [
        "  model          3.0 GiB",
        "  adapters       5.0 MiB",
        "  sampling *   100.0 MiB",
        "  learning *     1.0 GiB",
        "  peak           4.1 GiB",
    ]
    assert shortage(parts, "cpu", 4201 * MIB) is None
    text = shortage(parts, "cpu", 4200 * MIB)
    assert text == (
        "the run may need 4.1 GiB of memory on cpu, where 4.1 GiB are free: most is for model, "
        "learning; lower model.dtype, trainer.micro_batch_tokens (bfloat16 for a dtype), "
        "or stop what else uses the memory"
    )


def test_free_memory_as_linux_and_a_container_say_it(tmp_path: Path) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  4096 kB\nMemAvailable:  2048 kB\n")
    group = tmp_path / "cgroup"
    group.mkdir()
    assert available_bytes("cpu", memory=memory, control_group=group) == 2 * MIB
    (group / "memory.max").write_text(f"{3 * MIB}\n")
    (group / "memory.current").write_text(f"{2 * MIB}\n")
    assert available_bytes("cpu", memory=memory, control_group=group) == MIB
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {MIB // 2}\n")
    assert available_bytes("cpu", memory=memory, control_group=group) == MIB + MIB // 2
    (group / "memory.max").write_text("max\n")
    assert available_bytes("cpu", memory=memory, control_group=group) == 2 * MIB
    assert available_bytes("cpu", memory=tmp_path / "none", control_group=group) is None


async def test_a_run_says_what_it_needs_before_it_starts(
    tiny_policy_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    evaluation = {"num_prompts": 10**8, "min_prompts": 100}
    config = config_of(tmp_path, tiny_policy_path, rollout_rows=10**8, evaluation=evaluation)
    await run_training(config, prompts_file=prompts_file(tmp_path, 50), max_steps=1)
    names = [(r.name, r.levelname) for r in caplog.records]
    said = names.index(("bond_trainer.memory_report", "INFO"))
    warned = names.index(("bond_trainer.memory_report", "WARNING"))
    assert said < warned < names.index(("bond_trainer.progress", "INFO"))
    assert "lower trainer.rollout_rows" in caplog.records[warned].getMessage()
