"""The rules together: their order, their counts, and a state that goes on where it was."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from stored import completion
from tiny_training import messages_of

from bond_core.config import FakeEngineConfig, ModelConfig, TrainerConfig
from bond_core.engines.fake import FakeEngine
from bond_core.holdout import Split, split_of
from bond_core.store import Store, open_store
from bond_core.types import Message
from bond_trainer.curation import Curator, Row, log_curator, plain_curator
from bond_trainer.curation.curator import Decision
from bond_trainer.prompt_pool import PromptPool, TrainingPrompt
from bond_trainer.prompts import FilePrompts, LogPrompts, new_pool

CONFIG = TrainerConfig.model_validate(
    {
        "max_prompt_tokens": 10,
        "curation": {
            "min_prompt_tokens": 2,
            "max_unit_share": 0.25,
            "share_window": 40,
            "min_unit_rows": 4,
            "spike_window": 8,
        },
    }
)


def train_row(name: str, text: str, **changes: object) -> Row:
    messages = (Message("user", text),)
    assert split_of(messages) is Split.TRAIN, f"choose another text than {text!r}"
    return replace(Row(name, messages, 5), **changes)  # type: ignore[arg-type]


def train_texts(start: str, count: int) -> list[str]:
    """Distinct texts of the training split, each of a template of its own unless `start` has four
    words."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        text = f"{start} {word}"
        if split_of((Message("user", text),)) is Split.TRAIN:
            found.append(text)
        number += 1
    return found


def mixed_log() -> list[Row]:
    """Traffic of many kinds: usual rows, a probe, a loud unit, repetitions, pings, a burst."""
    usual = [train_row(f"usual-{n}", t) for n, t in enumerate(train_texts("about", 60))]
    loud = [
        train_row(f"loud-{n}", t, unit="loud") for n, t in enumerate(train_texts("me again", 30))
    ]
    burst = [train_row(f"burst-{n}", t) for n, t in enumerate(train_texts("buy these now or", 7))]
    [question] = train_texts("is the shop open", 1)
    probe = [train_row(f"probe-{n}", question, unit="p", arrived_at=30.0 * n) for n in range(6)]
    others = [
        replace(usual[3], id="again"),
        train_row("ping", "Ping!"),
        replace(usual[0], id="long", num_tokens=11),
        replace(usual[0], id="short", num_tokens=1),
        Row("empty", (), 0),
        Row("gate", messages_of(Split.GATE, 1)[0], 5),
    ]
    later = [train_row(f"later-{n}", t) for n, t in enumerate(train_texts("after", 40))]
    alternating = [row for pair in zip(usual[:30], loud, strict=True) for row in pair]
    return [*alternating, *probe, *usual[30:], *others, *burst, *later]


def test_the_first_rule_that_refuses_gives_the_reason() -> None:
    curator = log_curator(CONFIG, {"never this"})
    known = train_row("known", "a question")
    curator.offer(known)
    rows = {
        "empty": Row("a", (), 1),
        "held_out": Row("b", (Message("user", "never  this"),), 1),
        "too_short": train_row("c", "Ping!", num_tokens=1),
        "too_long": train_row("d", "a question", num_tokens=11),
        "health_check": train_row("e", "Ping!", unit="u"),
        "duplicate": train_row("f", " A question"),
        "accepted": train_row("g", "another question"),
    }
    assert {reason: curator.offer(row).reason for reason, row in rows.items()} == {
        reason: reason for reason in rows
    }
    assert curator.counts == {"rows": 8, **dict.fromkeys(rows, 1), "accepted": 2}


def test_a_probe_takes_its_first_row_with_it() -> None:
    curator = log_curator(CONFIG, ())
    probe = train_row("first", "is anybody in here", unit="probe")
    decisions = [
        curator.offer(replace(probe, id=f"row-{n}", arrived_at=10.0 * n)) for n in range(5)
    ]
    assert [d.reason for d in decisions] == ["accepted", *["duplicate"] * 3, "health_check"]
    assert [d.withdrawn for d in decisions] == [None] * 4 + ["row-0"]


def test_every_row_has_one_fate() -> None:
    curator = log_curator(CONFIG, ())
    for row in mixed_log():
        curator.offer(row)
    counts = curator.counts
    waiting = counts["quarantined"] - counts["released"] - counts["spike"]
    assert waiting == len(curator.quarantined_ids)
    fates = ("accepted", "empty", "held_out", "too_short", "too_long", "health_check")
    rest = ("duplicate", "unit_share", "spike")
    assert sum(counts[reason] for reason in (*fates, *rest)) + waiting == counts["rows"] == 149
    assert all(counts[reason] > 0 for reason in (*fates, *rest))


def test_what_was_dropped_may_come_again_and_what_was_refused_for_its_unit_too() -> None:
    curator = log_curator(CONFIG, ())
    log = mixed_log()
    decisions = {row.id: curator.offer(row) for row in log}
    dropped = {name for decision in decisions.values() for name in decision.dropped}
    assert dropped
    assert all(name.startswith("burst-") for name in dropped)
    again = next(row for row in log if row.id in dropped)
    assert curator.offer(replace(again, id="again")).reason == "accepted"
    refused = next(row for row in log if decisions[row.id].reason == "unit_share")
    assert curator.offer(replace(refused, id="other", unit="quiet")).reason == "accepted"


@pytest.mark.parametrize("stop", [0, 1, 20, 70, 105, 112, 140])
def test_a_restored_curator_goes_on_as_the_unbroken_one(stop: int) -> None:
    log = mixed_log()
    whole = log_curator(CONFIG, ())
    for row in log[:stop]:
        whole.offer(row)
    saved = json.loads(json.dumps(whole.state()))
    again = log_curator(CONFIG, ())
    again.restore(saved)
    assert [again.offer(row) for row in log[stop:]] == [whole.offer(row) for row in log[stop:]]
    assert json.dumps(again.state()) == json.dumps(whole.state())


def test_the_state_holds_no_text_and_no_name_of_a_unit() -> None:
    curator = log_curator(CONFIG, ())
    for row in mixed_log():
        curator.offer(row)
    state = json.dumps(curator.state())
    assert not any(text in state for text in ("about", "me again", '"loud"', "shop"))


def test_a_file_knows_no_units_and_no_spikes() -> None:
    curator = plain_curator(CONFIG, ())
    reasons = Counter(curator.offer(row).reason for row in mixed_log())
    assert set(reasons) == {
        "accepted", "empty", "held_out", "too_short", "too_long", "health_check", "duplicate"
    }  # fmt: skip
    assert reasons["duplicate"] == 6  # of the probe five, which has no time here, and one more


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite+aiosqlite:///{tmp_path / 'log.db'}")
    yield opened
    await opened.close()


async def record(store: Store, rows: list[Row]) -> None:
    await store.completions.record_many(
        completion(
            row.id,
            messages=row.messages,
            unit=row.unit or row.id,
            created_at=row.arrived_at,
            prompt_token_ids=tuple(range(row.num_tokens)),
        )
        for row in rows
        if row.messages and split_of(row.messages) is Split.TRAIN
    )


async def taken(prompts: LogPrompts, count: int) -> list[str]:
    """The ids of so many batches of three."""
    return [p.id for _ in range(count) for p in await prompts.take(3)]


async def test_the_log_is_curated_in_its_order_and_a_restart_changes_nothing(store: Store) -> None:
    """Saved while the burst is in quarantine, continued with later rows on both sides."""
    log = mixed_log()
    in_burst = next(n for n, row in enumerate(log) if row.id == "burst-6")
    await record(store, log[:in_burst])
    unbroken = LogPrompts(store, new_pool(CONFIG, ()), "run", 300.0)
    before = await taken(unbroken, 5)
    saved = json.loads(json.dumps(unbroken.state()))
    assert saved["pool"]["quarantined"]
    assert before[:4] == ["usual-0", "loud-0", "usual-1", "loud-1"]
    await record(store, log[in_burst:])
    resumed = LogPrompts(store, new_pool(CONFIG, ()), "run", 300.0)
    await resumed.restore(saved)
    assert await taken(resumed, 40) == await taken(unbroken, 40)
    assert resumed.counts == unbroken.counts
    assert resumed.state() == unbroken.state()
    assert unbroken.counts["spike"] > 0
    assert unbroken.counts["withdrawn"] == 1
    names = await taken(unbroken, 20)
    assert not any(name.startswith("probe") for name in names)


async def test_a_file_is_curated_too(tmp_path: Path) -> None:
    texts = [*train_texts("about", 5), "Ping!", " Ping! "]
    file = tmp_path / "prompts.jsonl"
    lines = [*texts, f" {texts[0]} ", texts[1]]
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in lines))
    pool = new_pool(TrainerConfig(), (), from_log=False)
    engine = FakeEngine(FakeEngineConfig(), ModelConfig(path=tmp_path, name="fake"))
    await engine.start()
    prompts = FilePrompts(file, engine, pool)
    assert [p.id for p in await prompts.take(5)] == ["1", "2", "3", "4", "5"]
    expected = {"rows": 9, "accepted": 5, "health_check": 2, "duplicate": 2, "used": 5}
    assert prompts.counts == expected
    again = FilePrompts(file, engine, new_pool(TrainerConfig(), (), from_log=False))
    await again.restore(json.loads(json.dumps(prompts.state())))
    await engine.close()
    assert [p.id for p in await again.take(5)] == ["1", "2", "3", "4", "5"]
    assert again.counts == {**expected, "used": 10}


def test_rules_can_be_switched_off() -> None:
    lenient = TrainerConfig.model_validate(
        {"curation": {"health_checks": [], "max_unit_share": 1.0, "spike_window": 4096}}
    )
    curator: Curator = log_curator(lenient, ())
    loud = [replace(row, unit="loud", arrived_at=0.0) for row in mixed_log() if row.messages]
    for row in loud:
        curator.offer(row)
    assert not {"health_check", "unit_share", "quarantined"} & curator.counts.keys()


class Scripted(Curator):
    """Decides what it was told, in order."""

    def __init__(self, *decisions: Decision) -> None:
        self._decisions = iter(decisions)
        self.counts = Counter[str]()

    def offer(self, row: Row) -> Decision:
        return next(self._decisions)


def test_a_health_check_found_out_in_quarantine_never_comes_out() -> None:
    curator = Scripted(
        Decision("quarantined"),
        Decision("health_check", withdrawn="ping"),
        Decision("accepted", released=("ping",)),
    )
    pool = PromptPool(max_uses=1, curator=curator)
    for name in ("ping", "fifth ping", "question"):
        pool.offer(TrainingPrompt(name, (Message("user", name),), 3))
    assert [prompt.id for prompt in pool.take(1)] == ["question"]
    assert len(pool) == 0
    assert pool.counts["withdrawn"] == 1
