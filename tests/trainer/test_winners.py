"""Only rows whose winner follows the law of Best-of-N of the reference are learned from."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import config_of, factors_of, messages_of

from bond_core.adapters import verify_adapter
from bond_core.config import BondConfig
from bond_core.holdout import Split
from bond_core.store import CompletionRecord, PolicyRecord, TrainingRecord, open_store
from bond_core.types import Arm, Candidate, Completion, Message, PolicyState, SamplingParams
from bond_trainer import run_training
from bond_trainer.logprobs import TokenRow
from bond_trainer.opening import open_parts
from bond_trainer.progress import Progress
from bond_trainer.training_run import TrainingRun
from bond_trainer.winners import disqualification, logged_winners, winner_of
from bond_trainer.winners_phase import epochs_of


def candidate(index: int, token: int, score: float | None) -> Candidate:
    return Candidate(index, Completion("x", (token, 1), (-1.0, -1.0), "stop"), score)


def row(
    number: int, scores: tuple[float | None, ...], messages: tuple[Message, ...]
) -> CompletionRecord:
    return CompletionRecord(
        id=f"row-{number}",
        created_at=float(number),
        requested_model="m:bon",
        arm=Arm.BON,
        version="v0000",
        best_of=len(scores),
        messages=messages,
        params=SamplingParams(),
        standard_sampling=True,
        split=Split.TRAIN,
        may_train=True,
        unit="u",
        prompt_token_ids=(3, 4, 5),
        candidates=tuple(candidate(i, 50 + i, score) for i, score in enumerate(scores)),
        chosen=(0,),
    )


TRAIN = messages_of(Split.TRAIN, 40)
GOOD = row(0, (0.5, 2.0, 1.0, 2.0), TRAIN[0])


def test_the_best_scored_candidate_wins_and_the_first_of_a_tie() -> None:
    assert disqualification(GOOD, 4, 100, frozenset()) is None
    assert winner_of(GOOD, 4) == TokenRow((3, 4, 5), (51, 1))


def test_of_a_larger_n_the_first_candidates_compete() -> None:
    larger = row(0, (0.5, 0.1, 1.0, 2.0), TRAIN[0])
    assert winner_of(larger, 2) == TokenRow((3, 4, 5), (50, 1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"candidates": GOOD.candidates[:3]}, "best_of_too_small"),
        ({"version": "v0001"}, "not_reference"),
        ({"standard_sampling": False}, "not_standard_sampling"),
        ({"may_train": False}, "not_allowed"),
        ({"messages": ()}, "not_allowed"),
        ({"status": "failed"}, "not_ok"),
        ({"degraded": "deadline"}, "not_ok"),
        ({"candidates": (*GOOD.candidates[:3], candidate(3, 53, None))}, "unscored"),
        ({"prompt_token_ids": ()}, "no_tokens"),
        ({"prompt_token_ids": tuple(range(101))}, "too_long"),
        ({"messages": messages_of(Split.GATE, 1)[0]}, "held_out"),
        ({"messages": messages_of(Split.REPORT, 1)[0]}, "held_out"),
    ],
)
def test_rows_that_do_not_qualify_say_why(changes: dict[str, object], reason: str) -> None:
    changed = replace(GOOD, **changes)  # type: ignore[arg-type]
    assert disqualification(changed, 4, 100, frozenset()) == reason


def test_prompts_of_the_held_out_files_do_not_qualify() -> None:
    assert disqualification(GOOD, 4, 100, frozenset({TRAIN[0][0].content})) == "held_out"


async def test_the_newest_rows_are_taken_and_counted(tmp_path: Path) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'log.db'}")
    for number in range(4):
        await store.completions.record(row(number, (0.0, float(number)), TRAIN[number]))
    long = replace(row(9, (0.0, 1.0), TRAIN[9]), prompt_token_ids=tuple(range(50)))
    await store.completions.record(long)
    found = await logged_winners(store, 2, max_rows=3, max_prompt_tokens=10)
    await store.close()
    assert found.counts == {"accepted": 2, "too_long": 1}
    assert [r.completion_token_ids for r in found.examples] == [(51, 1), (51, 1)]


async def test_a_request_sent_again_with_its_seed_is_one_draw(tmp_path: Path) -> None:
    """Without a seed, equal candidates are independent draws that agree: all of them count."""
    seeded, other = SamplingParams(seed=7), SamplingParams(seed=8)
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'log.db'}")
    for number, params in enumerate([seeded, seeded, other, SamplingParams(), SamplingParams()]):
        await store.completions.record(replace(row(number, (0.0, 1.0), TRAIN[0]), params=params))
    changed = replace(row(5, (0.0, 1.0), TRAIN[0]), params=seeded, prompt_token_ids=(3, 4))
    await store.completions.record(changed)
    found = await logged_winners(store, 2, max_rows=10, max_prompt_tokens=10)
    await store.close()
    assert found.counts == {"accepted": 5, "repeated": 1}
    assert found.seqs == (1, 3, 4, 5, 6)


def test_epochs_are_permutations() -> None:
    rows = [TokenRow((i,), (1,)) for i in range(5)]
    batches = epochs_of(rows, 2, seed=3)
    drawn = [row for _ in range(5) for row in next(batches)]
    assert sorted(tuple(r.prompt_token_ids) for r in drawn[:5]) == [(i,) for i in range(5)]
    assert sorted(tuple(r.prompt_token_ids) for r in drawn[5:]) == [(i,) for i in range(5)]
    assert drawn[:5] != drawn[5:]


async def fill(config: BondConfig, count: int, first: int = 0) -> None:
    """A log in which the winner is always the answer of token 51."""
    store = await open_store(config.store_url)
    await store.completions.record_many(
        row(number, (0.0, 1.0), TRAIN[number % 40]) for number in range(first, count)
    )
    await store.close()


async def test_the_phase_ends_with_a_hard_update_and_a_proposal(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    winners = {"min_rows": 30, "rows_per_step": 8, "learning_rate": 0.05}
    config = config_of(tmp_path, tiny_policy_path, winners=winners, prompts_per_step=4)
    config = config.model_copy(update={"arms": config.arms.model_copy(update={"best_of": 2})})
    await fill(config, 40)
    gate = "\n".join(f'{{"prompt": "{m[0].content}"}}' for m in messages_of(Split.GATE, 16))
    (tmp_path / "gate.jsonl").write_text(gate)
    evaluation = config.trainer.evaluation.model_copy(
        update={"gate_prompts": tmp_path / "gate.jsonl"}
    )
    trainer = config.trainer.model_copy(update={"evaluation": evaluation})
    config = config.model_copy(update={"trainer": trainer})
    await run_training(config, max_steps=1)
    factors = factors_of(config)
    store = await open_store(config.store_url)
    versions = await store.policies.all()
    report = await store.training.latest()
    await store.close()
    assert [v.step for v in versions[1:]] == [0, 1]  # after the winners, and at the end
    windows = [verify_adapter(Path(v.path)).log_window for v in versions[1:]]
    winners_window = {"winners_rows": 40, "first_seq": 1, "last_seq": 40}
    assert windows == [
        {**winners_window, "step": 0, "rows": 0},
        {**winners_window, "step": 1, "rows": 40},
    ]
    assert report is not None
    assert report.counts["winners_accepted"] == 40
    assert report.metrics["winners/num_steps"] == 5
    assert report.metrics["winners/loss_forward"] < 10
    name = next(n for n in factors if n.startswith("anchor.") and "lora_B" in n)
    policy = factors["policy." + name.removeprefix("anchor.")]
    assert float(factors[name].norm()) > 0.5 * float(policy.norm()) > 0


async def test_too_few_winners_skip_the_phase(tiny_policy_path: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_policy_path, prompts_per_step=4)
    config = config.model_copy(update={"arms": config.arms.model_copy(update={"best_of": 2})})
    await fill(config, 20)
    await run_training(config, max_steps=1)
    factors = factors_of(config)
    anchor = [f for n, f in factors.items() if n.startswith("anchor.") and "lora_B" in n]
    policy = [f for n, f in factors.items() if n.startswith("policy.") and "lora_B" in n]
    for average, current in zip(anchor, policy, strict=True):
        torch.testing.assert_close(average, 0.1 * current)  # one moving average from zero


def few_winners(folder: Path, model: Path, **settings: object) -> BondConfig:
    """Thirty winners are wanted, of two candidates each."""
    winners = {"min_rows": 30, "rows_per_step": 8, "learning_rate": 0.05}
    config = config_of(folder, model, winners=winners, **settings)
    return config.model_copy(update={"arms": config.arms.model_copy(update={"best_of": 2})})


async def test_winners_that_come_before_the_first_step_are_learned_from(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    config = few_winners(tmp_path, tiny_policy_path, prompts_per_step=64)
    await fill(config, 20)
    stop = asyncio.Event()
    seen: list[TrainingRecord] = []
    filling: list[asyncio.Task[None]] = []

    def watch(record: TrainingRecord) -> None:
        seen.append(record)
        if record.state == "waiting" and not filling:
            filling.append(asyncio.create_task(fill(config, 40, first=20)))
        elif record.metrics.get("winners/step") == 5:
            stop.set()

    await asyncio.wait_for(run_training(config, stop=stop, on_progress=watch), timeout=120)
    assert seen[-1].metrics["winners/num_steps"] == 5
    assert seen[-1].counts["winners_accepted"] == 40
    assert seen[-1].step == 0


async def later_winners(config: BondConfig) -> TrainingRecord:
    """One step on twenty rows, then twenty more, then the step with an evaluation."""
    await run_training(config, max_steps=1)
    await fill(config, 40, first=20)
    await run_training(config, max_steps=2)
    store = await open_store(config.store_url)
    report = await store.training.latest()
    await store.close()
    assert report is not None
    return report


async def test_winners_that_come_later_are_learned_from_at_an_evaluation(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    evaluation = {"every_steps": 2, "num_prompts": 16, "min_prompts": 8}
    config = few_winners(tmp_path, tiny_policy_path, prompts_per_step=4, evaluation=evaluation)
    await fill(config, 20)
    report = await later_winners(config)
    assert (report.step, report.metrics["winners/num_steps"]) == (2, 5)
    factors = factors_of(config)
    for name in (n for n in factors if n.startswith("anchor.")):
        assert torch.equal(factors[name], factors["policy." + name.removeprefix("anchor.")])


async def test_after_a_promotion_the_phase_is_over(tiny_policy_path: Path, tmp_path: Path) -> None:
    config = few_winners(tmp_path, tiny_policy_path)
    async with open_parts(config, None) as parts:
        run = TrainingRun(parts, Progress(parts.store, "run"), asyncio.Event(), 1)
        assert await run._winners_still_wanted()
        promoted = PolicyRecord(
            version="v0001",
            state=PolicyState.CANARY,
            path="",
            parent="v0000",
            step=1,
            created_at=0.0,
            updated_at=0.0,
        )
        await parts.store.policies.insert(promoted)
        await parts.store.policies.activate("v0001", "it was better")
        assert not await run._winners_still_wanted()
