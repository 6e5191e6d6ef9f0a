"""The whole trainer on a tiny model: it learns, proposes, resumes exactly, stops cleanly."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from locked_store import locked
from tiny_training import config_of, factors_of, prompts_file

from bond_core.adapters import probe_adapter, verify_adapter
from bond_core.config import LocalEngineConfig
from bond_core.engines import build_engine
from bond_core.errors import ConfigError, ScoringError
from bond_core.holdout import Split, split_of_text
from bond_core.store import TrainingRecord, open_store
from bond_core.types import Message, PolicyState
from bond_trainer import run_training
from bond_trainer.opening import open_parts


async def test_training_on_a_file_raises_the_reward_and_proposes(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    seen: list[TrainingRecord] = []
    await run_training(
        config, prompts_file=prompts_file(tmp_path), max_steps=30, on_progress=seen.append
    )
    store = await open_store(config.store_url)
    versions = await store.policies.all()
    report = await store.training.latest()
    evaluations = await store.evaluations.latest(10)
    await store.close()
    assert [v.version for v in versions] == ["v0000", "v0001", "v0002"]
    assert versions[1].state is PolicyState.CHALLENGER
    assert versions[2].parent == "v0001"
    last = evaluations[0].metrics
    assert last["reward_ci95"][0] > last["reference"]["reward_ci95"][1]
    assert last["quantile_mean"] > 0.6
    assert last["kl_nats"] > 0.05
    assert last["win_rate_vs_reference_ci95"][0] > 0.5
    assert evaluations[0].split is Split.GATE
    assert report is not None
    assert (report.state, report.step) == ("stopped", 30)
    assert {"train/penalty_rate", "seconds/generate", "eval/reward_mean"} <= set(report.metrics)
    held_out = sum(split_of_text(f"question {i}") is not Split.TRAIN for i in range(400))
    assert report.counts["held_out"] == held_out
    assert report.counts["used"] == 30 * 16
    assert {"starting", "training", "evaluating", "stopped"} == {record.state for record in seen}


async def test_a_proposed_version_verifies_and_is_what_an_engine_serves(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=8)
    path = config.adapters_dir / "v0001"
    manifest = verify_adapter(path)
    assert (manifest.parent, manifest.step, manifest.base_model) == ("v0000", 8, "tiny")
    assert len(manifest.probe) == 8
    assert manifest.log_window == {"step": 8, "rows": 400}
    engine = build_engine(LocalEngineConfig(), config.model)
    await engine.start()
    await engine.load_adapter("v0001", path)
    report = await probe_adapter(engine, manifest, engine.info.logprob_noise_nats)
    await engine.close()
    assert report.distance < 0.01 * report.distance_to_nearest


async def test_a_restarted_trainer_ends_where_an_unbroken_one_does(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for name, stops in (("whole", [6]), ("broken", [3, 6])):
        folder = tmp_path / name
        folder.mkdir()
        config = config_of(folder, tiny_policy_path, checkpoint_every_steps=3)
        for max_steps in stops:
            await run_training(config, prompts_file=prompts_file(folder), max_steps=max_steps)
        found.append(factors_of(config))
    whole, broken = found
    assert whole.keys() == broken.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, broken[name]), name
    assert any(float(tensor.abs().max()) > 0 for name, tensor in whole.items() if "lora_B" in name)


async def test_it_waits_for_traffic_and_stops_when_asked(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    stop = asyncio.Event()
    seen: list[str] = []

    def watch(record: TrainingRecord) -> None:
        seen.append(record.state)
        if record.state == "waiting":
            stop.set()

    await asyncio.wait_for(run_training(config, stop=stop, on_progress=watch), timeout=120)
    assert seen[-2:] == ["waiting", "stopped"]
    assert [p.name for p in config.checkpoints_dir.glob("step-*")] == ["step-000000000"]


async def test_a_reward_function_that_always_fails_ends_the_run_with_its_words(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path, poll_s=0.01)
    function = config.scorer.model_dump()["function"].replace(":reward", ":broken")
    config = config.model_copy(
        update={"scorer": config.scorer.model_copy(update={"function": function})}
    )
    with pytest.raises(ScoringError, match="no reward today"):
        await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=30)
    store = await open_store(config.store_url)
    report = await store.training.latest()
    await store.close()
    assert report is not None
    assert report.error is not None
    assert report.state == "failed"
    assert "no reward today" in report.error
    assert report.counts["scoring_failed"] == 10


async def test_a_store_that_is_away_at_the_end_does_not_make_a_run_a_failure(
    tiny_policy_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        async with open_parts(config_of(tmp_path, tiny_policy_path), None) as parts:
            stack.enter_context(locked(parts.store, commit_timeout_s=0.2))
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "lease is left to run out: " in text]) == 1


async def test_two_trainers_on_one_data_directory_are_refused(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    async with open_parts(config, None):
        with pytest.raises(ConfigError, match="another trainer uses"):
            await run_training(config)


async def test_a_file_with_too_few_prompts_is_refused(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    with pytest.raises(ConfigError, match=r"fewer than trainer\.prompts_per_step \(16\)"):
        await run_training(config, prompts_file=prompts_file(tmp_path, count=10))


async def test_the_files_own_gate_half_is_evaluated_on(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    async with open_parts(config, prompts_file(tmp_path)) as parts:
        prompts = await parts.held_out.prompts()
        assert len(prompts) == 16
        assert all(split_of_text(p[0].content) is Split.GATE for p in prompts)
        held_out = await parts.held_out.resolve(parts.engine, parts.scorers)
        assert held_out is not None
        again = await parts.held_out.resolve(parts.engine, parts.scorers)
        assert again is not None
    assert held_out.reference.rewards_PS.shape == (16, 16)
    assert (held_out.reference.rewards_PS == again.reference.rewards_PS).all()
    assert held_out.reference.generations
    assert not again.reference.generations  # read back, not drawn again
    assert held_out.prompts[0] == (Message("user", prompts[0][0].content),)


async def test_another_reward_function_under_the_same_name_is_drawn_anew(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_policy_path)
    prompts = prompts_file(tmp_path)
    async with open_parts(config, prompts) as parts:
        before = await parts.held_out.resolve(parts.engine, parts.scorers)
    rewards = tmp_path / "rewards.py"
    rewards.write_text(rewards.read_text().replace('text.count("e")', 'text.count("a")'))
    async with open_parts(config, prompts) as parts:
        after = await parts.held_out.resolve(parts.engine, parts.scorers)
    assert before is not None
    assert after is not None
    assert (before.reference.rewards_PS != after.reference.rewards_PS).any()
