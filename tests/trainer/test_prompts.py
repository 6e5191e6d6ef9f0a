"""Prompts are learned from at most so often, never when held out, and consumed as checkpointed."""

import json
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import config_of, messages_of

from bond_core.config import FakeEngineConfig, ModelConfig, TrainerConfig
from bond_core.engines.fake import FakeEngine
from bond_core.errors import ConfigError
from bond_core.holdout import Split, split_of
from bond_core.store import CompletionRecord, Origin, Store, open_store
from bond_core.types import Arm, Candidate, Completion, Message, SamplingParams
from bond_trainer.curation import log_curator
from bond_trainer.held_out import held_out_openings
from bond_trainer.library import train
from bond_trainer.prompt_files import prompts_of_split, read_prompt_file, read_prompts
from bond_trainer.prompt_pool import PromptPool, TrainingPrompt
from bond_trainer.prompts import LATE_ROWS, FilePrompts, LogPrompts, new_pool


def prompt(messages: tuple[Message, ...], num_tokens: int = 5) -> TrainingPrompt:
    return TrainingPrompt(messages[0].content, messages, num_tokens)


def row(
    number: int, messages: tuple[Message, ...], split: Split | None = None, may_train: bool = True
) -> CompletionRecord:
    completion = Completion("fine", (7, 1), (-1.0, -1.0), "stop")
    return CompletionRecord(
        id=f"row-{number}",
        created_at=float(number),
        requested_model="m",
        arm=Arm.REFERENCE,
        version="v0000",
        best_of=1,
        messages=messages,
        params=SamplingParams(),
        standard_sampling=True,
        split=split or split_of(messages),
        may_train=may_train,
        unit="u",
        prompt_token_ids=(3, 4, 5),
        candidates=(Candidate(0, completion, 1.0),),
        chosen=(0,),
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'log.db'}")
    yield opened
    await opened.close()


def new_test_pool(max_uses: int, held_out: Collection[str] = ()) -> PromptPool:
    config = TrainerConfig(max_prompt_tokens=10)
    return PromptPool(max_uses=max_uses, curator=log_curator(config, held_out))


def source(store: Store, holder: str = "run", **settings: int) -> LogPrompts:
    config = TrainerConfig.model_validate(settings)
    return LogPrompts(store, new_pool(config, ()), holder, 300.0)


def test_fresh_prompts_come_first_and_each_at_most_so_often() -> None:
    pool = new_test_pool(2)
    first, second, third = messages_of(Split.TRAIN, 3)
    pool.offer(prompt(first))
    assert [p.messages for p in pool.take(1)] == [first]
    pool.offer(prompt(second))
    pool.offer(prompt(third))
    assert [p.messages for p in pool.take(2)] == [second, third]
    assert [p.messages for p in pool.take(3)] == [first, second, third]
    assert pool.take(1) == []
    assert pool.counts == {"rows": 3, "accepted": 3, "used": 6, "exhausted": 3}


def test_a_batch_is_whole_or_nothing() -> None:
    pool = new_test_pool(1)
    pool.offer(prompt(messages_of(Split.TRAIN, 1)[0]))
    assert pool.take(2) == []
    assert len(pool.take(1)) == 1


def test_prompts_are_left_out_for_counted_reasons() -> None:
    known, other = messages_of(Split.TRAIN, 2)
    pool = new_test_pool(1, {other[0].content})
    assert pool.offer(prompt(known))
    assert not pool.offer(TrainingPrompt("again", known, 5))
    assert not pool.offer(TrainingPrompt("long", (Message("user", "question long"),), 11))
    assert not pool.offer(prompt((Message("user", f"  {other[0].content} "),)))
    for split in (Split.GATE, Split.REPORT):
        assert not pool.offer(prompt(messages_of(split, 1)[0]))
    assert not pool.offer(TrainingPrompt("none", (), 0))
    left_out = {"duplicate": 1, "too_long": 1, "held_out": 3, "empty": 1}
    assert pool.counts == {"rows": 7, "accepted": 1, **left_out}


def test_a_used_up_prompt_stays_known() -> None:
    pool = new_test_pool(1)
    [conversation] = messages_of(Split.TRAIN, 1)
    pool.offer(prompt(conversation))
    pool.take(1)
    assert not pool.offer(TrainingPrompt("again", conversation, 5))


async def test_the_log_gives_training_rows_in_order_and_never_held_out(store: Store) -> None:
    train = messages_of(Split.TRAIN, 3)
    held_out = messages_of(Split.GATE, 1)[0]
    await store.completions.record(row(1, train[0]))
    await store.completions.record(row(2, held_out))
    await store.completions.record(row(3, held_out, split=Split.TRAIN))  # a mislabelled row
    await store.completions.record(row(4, train[1], may_train=False))
    await store.completions.record(row(5, train[2]))
    prompts = source(store)
    assert [p.id for p in await prompts.take(2)] == ["row-1", "row-5"]
    assert prompts.counts["held_out"] == 1
    assert prompts.log_window == {"first_seq": 1, "last_seq": 5, "rows": 3}


async def test_new_rows_are_claimed_and_old_ones_used_again(store: Store) -> None:
    train = messages_of(Split.TRAIN, 4)
    prompts = source(store, max_epochs=2)
    assert await prompts.take(2) == []
    for number in (0, 1):
        await store.completions.record(row(number, train[number]))
    assert [p.id for p in await prompts.take(2)] == ["row-0", "row-1"]
    await store.completions.record(row(2, train[2]))
    assert [p.id for p in await prompts.take(2)] == ["row-2", "row-0"]
    assert [p.id for p in await prompts.take(2)] == ["row-1", "row-2"]
    assert await prompts.take(1) == []


async def test_another_trainers_claims_are_left_alone(store: Store) -> None:
    await store.completions.record(row(0, messages_of(Split.TRAIN, 1)[0]))
    assert len(await source(store, "one").take(1)) == 1
    assert await source(store, "two").take(1) == []


async def test_the_state_decides_what_was_consumed(store: Store) -> None:
    train = messages_of(Split.TRAIN, 5)
    for number in range(4):
        await store.completions.record(row(number, train[number]))
    prompts = source(store, max_epochs=2)
    await prompts.take(2)
    state = json.loads(json.dumps(prompts.state()))
    expected = [[p.id for p in await prompts.take(2)] for _ in range(3)]
    await store.completions.record(row(4, train[4]))
    again = source(store, max_epochs=2)
    await again.restore(state)
    assert [[p.id for p in await again.take(2)] for _ in range(1)] == expected[:1]
    assert [p.id for p in await again.take(2)] == ["row-4", "row-0"]


async def test_a_row_that_appears_late_is_still_found(store: Store) -> None:
    """The watermark stays behind the highest row seen."""
    prompts = source(store)
    prompts._highest = 50  # as if row 50 had been seen while lower ones were uncommitted
    await store.completions.record(row(0, messages_of(Split.TRAIN, 1)[0]))
    assert [p.id for p in await prompts.take(1)] == ["row-0"]
    prompts._highest = LATE_ROWS + 1
    prompts._seen.clear()
    assert await prompts.take(1) != []  # its second use, without a second claim
    assert prompts.counts["rows"] == 1


async def test_prompts_of_a_held_out_half_come_from_the_log(store: Store) -> None:
    gate, report = messages_of(Split.GATE, 2), messages_of(Split.REPORT, 1)
    for number, messages in enumerate([gate[0], report[0], gate[1]]):
        await store.completions.record(row(number, messages))
    assert await store.completions.prompts_of(Split.GATE, 10) == gate
    assert await store.completions.prompts_of(Split.GATE, 1) == gate[:1]
    assert await store.completions.prompts_of(Split.REPORT, 10) == report


def test_a_file_holds_prompts_or_conversations(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file.write_text(json.dumps({"prompt": "x\u2028y"}, ensure_ascii=False) + "\n\n")
    with file.open("a") as stream:
        stream.write(json.dumps({"messages": turns, "note": 1}) + "\n")
    assert read_prompts(file) == [
        (Message("user", "x\u2028y"),),
        (Message("user", "a"), Message("assistant", "b")),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{nope", "line 1: not JSON"),
        ("[1]", "line 1: expected"),
        ('{"messages": []}', "line 1: expected"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role of system, user, assistant"),
        ("\n", "holds no prompts"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_prompts(file)
    with pytest.raises(ConfigError, match="cannot read prompts"):
        read_prompts(tmp_path / "missing")


def exported(text: str, **fields: Any) -> dict[str, Any]:
    """What of a line of `/v1/export` says whether it may be learned from."""
    line = {"id": f"chatcmpl-{text}", "status": "ok", "may_train": True, "redacted": False}
    return {**line, "messages": [{"role": "user", "content": text}], **fields}


CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
ASKED = {"role": "user", "content": "what time is it"}
WITHHELD = [
    exported("private", may_train=False),
    exported("private too", may_train=False, redacted=True, status="failed"),
    exported("Mr \u2588", redacted=True),
    exported("broken off", status="cancelled"),
    exported("raw", messages=[{"role": "prompt", "content": "Once upon"}]),
    exported(
        "null", messages=[ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    ),
    exported("no key", messages=[ASKED, {"role": "assistant", "tool_calls": [CALL]}]),
    exported("empty", messages=[ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]),
]
REASONS = {"no_consent": 2, "redacted": 1, "unanswered": 1, "raw_text": 1, "tool_calls": 3}


async def test_rows_of_an_export_that_may_not_be_learned_from_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "export.jsonl"
    first, second, third = messages_of(Split.TRAIN, 3)
    rows = [
        exported(first[0].content),
        *WITHHELD,
        exported(second[0].content),
        {"prompt": third[0].content, "status": "reviewed"},  # a data set's own word
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    read = read_prompt_file(file)
    assert read.by_line == {1: first, 10: second, 11: third}
    assert read.left_out == REASONS
    assert read_prompts(file) == [first, second, third]
    [said] = [record.getMessage() for record in caplog.records]
    for part in ("2 lines (`may_train` is false)", "1 line (raw text", "; 3 lines stay"):
        assert part in said
    engine = FakeEngine(FakeEngineConfig(), ModelConfig(path=tmp_path, name="fake"))
    await engine.start()
    source = FilePrompts(file, engine, new_pool(TrainerConfig(), (), from_log=False))
    assert [(p.id, p.messages) for p in await source.take(3)] == [
        ("1", first), ("10", second), ("11", third),
    ]  # fmt: skip
    await engine.close()
    assert source.counts == {"rows": 3, "accepted": 3, "used": 3, **REASONS}


def test_a_file_of_nothing_but_such_rows_is_an_error_that_says_so(tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in WITHHELD))
    with pytest.raises(ConfigError, match=r"no prompts: left out are 2 lines \(`may_train`"):
        read_prompts(file)


def test_rows_given_to_the_library_keep_what_withholds_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no prompts: left out are 2 lines \(`may_train`"):
        train("no-model", "rewards.py:none", WITHHELD, out_dir=tmp_path, progress=False)


def test_a_files_held_out_prompts_are_found_by_the_split(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    gate, train = messages_of(Split.GATE, 1), messages_of(Split.TRAIN, 2)
    lines = [json.dumps({"prompt": m[0].content}) for m in [*train, *gate]]
    file.write_text("\n".join(lines))
    assert prompts_of_split(file, Split.GATE) == gate


async def test_repetitions_do_not_hide_the_other_held_out_prompts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bond_core.store.completions._PROMPTS_PAGE", 4)
    first, second, third = messages_of(Split.GATE, 3)
    went_on = (*first, Message("assistant", "so?"), Message("user", "more"))
    spaced = (Message("user", f"  {first[0].content}"),)
    asked = [first, first, went_on, spaced, first, first, second, first, third]
    await store.completions.record_many(row(n, messages) for n, messages in enumerate(asked))
    assert await store.completions.prompts_of(Split.GATE, 3) == [first, second, third]
    assert await store.completions.prompts_of(Split.GATE, 2) == [first, second]
    assert await store.completions.prompts_of(Split.GATE, 10) == [first, second, third]


def test_prompts_that_wait_for_another_use_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bond_trainer.prompt_pool.MAX_REUSABLE", 2)
    pool = new_test_pool(5)
    train = messages_of(Split.TRAIN, 5)
    for messages in train[:4]:
        pool.offer(prompt(messages))
    pool.take(3)
    assert (len(pool), pool.num_fresh) == (3, 1)
    assert pool.counts["exhausted"] == 1
    assert [p.messages for p in pool.take(3)] == [train[3], train[1], train[2]]
    assert not pool.offer(prompt(train[0]))  # its digest is still known


async def test_the_window_goes_on_after_a_restart(store: Store) -> None:
    train = messages_of(Split.TRAIN, 3)
    prompts = source(store)
    assert prompts.log_window == {"rows": 0}
    await store.completions.record(row(0, messages_of(Split.GATE, 1)[0]))
    await store.completions.record(row(1, train[0]))
    await prompts.take(1)
    again = source(store)
    await again.restore(json.loads(json.dumps(prompts.state())))
    await store.completions.record(row(2, train[1]))
    await again.take(1)
    assert again.log_window == {"first_seq": 2, "last_seq": 3, "rows": 2}


@pytest.mark.parametrize("name", ["gate_prompts", "report_prompts"])
def test_both_held_out_files_are_never_learned_from(tmp_path: Path, name: str) -> None:
    file = tmp_path / "held_out.jsonl"
    file.write_text(json.dumps({"prompt": " what  is held out"}))
    config = config_of(tmp_path, tmp_path, evaluation={name: file})
    assert held_out_openings(config) == {"what is held out"}


async def test_candidates_of_the_reference_come_with_their_prompt_once(store: Store) -> None:
    """Best-of-3 of the reference qualifies; of a version, degraded or a single sample it does
    not. An answer that was learned from says nothing new the second time."""
    candidates = tuple(
        Candidate(i, Completion(f"answer {i}", (10 + i, 1), (-1.0, -0.5), "stop"), float(i))
        for i in range(3)
    )
    questions = messages_of(Split.TRAIN, 4)
    best = {"arm": Arm.BON, "best_of": 3, "candidates": candidates, "chosen": (2,)}
    rows = [
        replace(row(0, questions[0]), **best),
        replace(row(1, questions[1]), **best, version="v0002"),
        replace(row(2, questions[2]), **best, degraded="unscored"),
        row(3, questions[3]),
    ]
    for record in rows:
        await store.completions.record(record)
    prompts = source(store, max_epochs=2)
    first = {p.messages: p.logged for p in await prompts.take(3)}
    assert first[questions[0]] == tuple(candidate.completion for candidate in candidates)
    assert [first[q] for q in questions[1:] if q in first] == [(), ()]
    again = {p.messages: p.logged for p in await prompts.take(3)}
    assert again[questions[0]] == ()


async def test_what_is_deleted_is_not_learned_from_any_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bond_trainer.prompts.LOOK_EVERY_S", 0.0)
    for number in range(8):
        words = (Message("user", f"question {number}"),)
        asked = row(number, words, Split.TRAIN)
        await store.completions.record(
            replace(asked, split=Split.TRAIN, origin=Origin(user=f"user {number % 2}"))
        )
    prompts = source(store)
    first = await prompts.take(1)
    before = set(prompts._pool.names)
    await store.deletions.delete_user("user 1")
    await store.deletions.expire_contents(before=3.0, limit=10)  # rows 0 and 2
    kept = {"row-4", "row-6"}

    [then] = await prompts.take(1)

    assert len(first) == 1
    assert then.id in kept
    assert prompts.counts["deleted"] == len(before - kept)
    assert set(prompts._pool.names) <= kept
    resumed = source(store)
    await resumed.restore(prompts.state())
    assert set(resumed._pool.names) == set(prompts._pool.names)
