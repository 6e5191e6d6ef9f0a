"""What is proposed, against whom, and what is kept of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from tiny_training import config_of, prompts_file

from bond_core.adapters import read_manifest
from bond_core.store import PolicyRecord
from bond_core.types import PolicyState
from bond_trainer.held_out import HeldOut
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY
from bond_trainer.opening import Parts, open_parts
from bond_trainer.promotion import incumbent_version
from bond_trainer.rejected import forget_old_rejected

NO_GUARDS = {
    "kl_budget_nats": 1000,
    "max_added_repetition": 1,
    "max_added_identical": 1,
    "min_distinct_ratio": 0,
}
"""What these tests learn is one answer; `test_poisoned_challengers.py` has the guards on."""


@pytest.fixture
async def parts(tiny_policy_path: Path, tmp_path: Path) -> AsyncIterator[Parts]:
    config = config_of(tmp_path, tiny_policy_path, gate=NO_GUARDS)
    async with open_parts(config, prompts_file(tmp_path)) as opened:
        publish(opened)
        yield opened


@pytest.fixture
async def held_out(parts: Parts) -> HeldOut:
    found = await parts.held_out.resolve(parts.engine, parts.scorers)
    assert found is not None
    return found


def publish(parts: Parts) -> None:
    for name in (POLICY, ANCHOR):
        parts.engine.publish(name, parts.learner.pair.merged_weights(name))


def favour_the_letter(parts: Parts) -> None:
    """Learn answers that the reward likes, until they dominate."""
    learner = parts.learner
    letters = parts.engine._tokenizer("eeee", add_special_tokens=False)["input_ids"]
    learner.begin("winners", 1000)
    rows = [TokenRow((3, 40, 41, 1, 4), (*letters, 1)) for _ in range(4)]
    for _ in range(15):
        learner.learn_from_winners(rows)
    publish(parts)


def unlearn(parts: Parts) -> None:
    with torch.no_grad():
        for factor in parts.learner.pair.factors(POLICY).values():
            factor.zero_()
    publish(parts)


async def test_a_better_policy_becomes_a_challenger_with_its_evidence(
    parts: Parts, held_out: HeldOut
) -> None:
    favour_the_letter(parts)
    record = await parts.proposer.propose(7, held_out, {"rows": 3})
    assert (record.version, record.state, record.parent) == (
        "v0001",
        PolicyState.CHALLENGER,
        "v0000",
    )
    assert record == await parts.store.policies.get("v0001")
    gate = record.evaluation["gate"]
    assert gate["passed"]
    assert gate["reward_gain_lower"] > 0
    assert gate["level"] == pytest.approx(0.05 * 6 / torch.pi**2)
    guards = ["kl", "length", "truncation", "repetition", "identical", "distinct"]
    names = ["reward", *guards, "judge", "judge_reference"]
    assert [c["name"] for c in gate["checks"]] == names
    judge = record.evaluation["judge_mean"] - record.evaluation["reference"]["judge_mean"]
    assert gate["judge_gain_over_reference"] == pytest.approx(judge)
    assert record.evaluation["reward_mean"] == pytest.approx(
        record.evaluation["reference"]["reward_mean"] + gate["reward_gain"], abs=0.02
    )
    manifest = read_manifest(Path(record.path))
    assert manifest.log_window == {"rows": 3}
    assert manifest.evaluation["reward_mean"] == record.evaluation["reward_mean"]
    for case in manifest.probe:
        assert case.parent == pytest.approx(case.reference, abs=1e-3)  # its parent is v0000
        row = TokenRow(case.prompt_token_ids, case.completion_token_ids)
        assert case.this == pytest.approx(parts.learner.logprobs(POLICY, [row])[0], abs=1e-3)
    separations = [abs(case.this - case.reference) for case in manifest.probe]
    assert separations == sorted(separations, reverse=True)
    assert separations[-1] > 1


async def test_a_policy_without_gain_is_kept_as_rejected_with_the_reason(
    parts: Parts, held_out: HeldOut
) -> None:
    record = await parts.proposer.propose(1, held_out, {})
    assert record.state is PolicyState.REJECTED
    assert "lower bound +0 " in record.reason
    assert (Path(record.path) / "manifest.json").exists()
    [evaluation] = await parts.store.evaluations.of("v0001")
    assert evaluation.metrics["kl_nats"] == pytest.approx(0.0, abs=1e-5)


async def test_the_next_one_has_to_beat_the_one_that_waits(parts: Parts, held_out: HeldOut) -> None:
    favour_the_letter(parts)
    await parts.proposer.propose(1, held_out, {})
    unlearn(parts)
    worse = await parts.proposer.propose(2, held_out, {})
    assert (worse.parent, worse.state) == ("v0001", PolicyState.REJECTED)
    assert worse.evaluation["gate"]["reward_gain"] < 0
    # one challenger was promoted of one before: the second level of LOND, doubled
    assert worse.evaluation["gate"]["level"] == pytest.approx(2 * 0.05 * 6 / (2 * torch.pi) ** 2)
    assert set(await parts.engine.loaded_versions()) == {"v0000", "policy", "anchor", "v0001"}


async def test_every_evaluation_draws_fresh_samples(parts: Parts, held_out: HeldOut) -> None:
    """A set of samples that flatters the challenger must not decide for ever."""
    first, second, repeated = [await parts.proposer._gather(n, held_out) for n in (1, 2, 1)]
    for one, two, same in (
        (first.ours, second.ours, repeated.ours),
        (first.theirs, second.theirs, repeated.theirs),
    ):
        texts = [[[c.text for c in g.completions] for g in d.generations] for d in (one, two, same)]
        assert texts[0] != texts[1]
        assert texts[0] == texts[2]


async def test_the_level_follows_from_all_that_was_tested_before(
    parts: Parts, held_out: HeldOut
) -> None:
    history = [
        (PolicyState.RETIRED, True),
        (PolicyState.REJECTED, False),
        (PolicyState.ROLLED_BACK, True),
        (PolicyState.REJECTED, False),
        (PolicyState.REJECTED, False),
    ]
    for number, (state, passed) in enumerate(history, 1):
        await insert(parts, f"v{number:04d}", state, passed=passed)
    record = await parts.proposer.propose(1, held_out, {})
    # the sixth challenger, after two promotions
    level = (2 + 1) * 0.05 * 6 / (6 * torch.pi) ** 2
    assert record.evaluation["gate"]["level"] == pytest.approx(level)


async def test_only_the_newest_rejected_versions_keep_their_weights(
    parts: Parts, held_out: HeldOut
) -> None:
    states = [
        PolicyState.REJECTED,
        PolicyState.RETIRED,
        PolicyState.REJECTED,
        PolicyState.ROLLED_BACK,
        PolicyState.REJECTED,
        PolicyState.REJECTED,
    ]
    folder = parts.config.adapters_dir
    for number, state in enumerate(states, 1):
        version = await parts.store.policies.next_version()
        assert version == f"v{number:04d}"
        await insert(parts, version, state)
        (folder / version).mkdir(parents=True)
        (folder / version / "adapter_model.safetensors").write_bytes(b"weights")
    record = await parts.proposer.propose(1, held_out, {})
    assert (record.version, record.state) == ("v0007", PolicyState.REJECTED)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["v0002", "v0004", "v0005", "v0006", "v0007"]
    rejected = await parts.store.policies.in_state(PolicyState.REJECTED)
    assert [r.version for r in rejected] == ["v0001", "v0003", "v0005", "v0006", "v0007"]
    assert rejected[0].reason == "of v0001"
    assert await forget_old_rejected(parts.store, folder) == []


async def insert(
    parts: Parts, version: str, state: PolicyState, *, passed: bool = False, at: float = 1.0
) -> None:
    await parts.store.policies.insert(
        PolicyRecord(
            version=version,
            state=state,
            path=str(parts.config.adapters_dir / version),
            parent="v0000",
            step=1,
            created_at=at,
            updated_at=at,
            reason=f"of {version}",
            evaluation={"gate": {"passed": passed}},
        )
    )


async def test_the_incumbent_is_what_waits_else_what_is_active(parts: Parts) -> None:
    assert (await incumbent_version(parts.store)).version == "v0000"
    await insert(parts, "v0001", PolicyState.CHALLENGER, at=2e9)
    await insert(parts, "v0002", PolicyState.REJECTED, at=2e9 + 1)
    assert (await incumbent_version(parts.store)).version == "v0001"
    await parts.store.policies.activate("v0001", "test")
    assert (await incumbent_version(parts.store)).version == "v0001"
    await insert(parts, "v0003", PolicyState.CANARY, at=2e9 + 2)
    assert (await incumbent_version(parts.store)).version == "v0003"
