"""The log: what is written is what is read, and what may be read by whom."""

from dataclasses import fields, replace

import pytest
from sqlalchemy import Connection
from stored import best_of_n, candidate, completion

from bond_core.errors import ScoringError, StoreUnavailableError
from bond_core.holdout import Split
from bond_core.store import Annotation, CompletionRecord, Origin, Store
from bond_core.store.tables import UNSCORED
from bond_core.types import (
    Arm,
    Candidate,
    Completion,
    Message,
    SamplingParams,
)

HARD_TEXT = 'nul \x00, lone \ud800, "quotes", \u2028, 漢字, 🙂, \\u0000'

FULL = CompletionRecord(
    id="01890a5d-ac96-774b-bcce-b302099a8057",
    created_at=1_750_000_000.123456,
    requested_model="demo:bon",
    experiment="spring",
    arm=Arm.BON,
    version="v0000",
    best_of=2,
    n=2,
    messages=(Message("system", "be kind"), Message("user", HARD_TEXT)),
    params=SamplingParams(
        max_tokens=7,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias={5: -100.0, 1_000_000: 2.5},
        stop=("\n\n", HARD_TEXT),
        seed=2**63 - 1,
    ),
    standard_sampling=False,
    split=Split.REPORT,
    may_train=False,
    unit="user-é",
    key="0123456789ab",
    prompt_token_ids=(1, 2**32 - 1, 0),
    candidates=(
        Candidate(0, Completion(HARD_TEXT, (4, 5), (-0.1, -1e-12), "length"), -3.25),
        Candidate(1, Completion("", (), (), "stop"), None),
    ),
    cut_tokens=7,
    chosen=(1, 0),
    status="failed",
    degraded="scoring failed",
    error="RewardError: nothing",
    source="seed",
    queue_s=0.001,
    generate_s=0.02,
    score_s=0.003,
    latency_s=0.024,
    score=-3.25,
    judge_score=1e-300,
    gold_score=0.0,
    log_ratio=-12.75,
    origin=Origin(
        user="né",
        safety_identifier="hash of né",
        metadata={"session_id": HARD_TEXT, "é": "", "a\x00": "1", "a\ufffd": "2"},
        digest="d1",
        retry=2,
    ),
    system_fingerprint="bond-0.1-v0000",
    stored=True,
    redacted=True,
)


async def test_every_field_comes_back_as_it_was(store: Store) -> None:
    untouched = {f.name for f in fields(FULL) if getattr(FULL, f.name) == f.default}
    untouched -= {"seq", "superseded", "keep_content"}  # the store's own, and what is no column
    assert untouched == set()  # each field is put to the test with a value of its own

    await store.completions.record(FULL)

    assert await store.completions.get(FULL.id) == replace(FULL, seq=1)


async def test_a_row_without_content_comes_back_empty(store: Store) -> None:
    bare = completion("bare", messages=(), prompt_token_ids=(), candidates=(), chosen=())
    await store.completions.record(bare)
    assert await store.completions.get("bare") == replace(bare, seq=1)
    assert await store.completions.unscored(10) == []


async def test_text_that_no_database_takes_is_replaced_in_plain_columns(store: Store) -> None:
    await store.completions.record(completion("odd", unit="a\x00b\ud800c", error="é"))
    found = await store.completions.get("odd")
    assert found is not None
    assert found.unit.startswith("a\ufffdb\ufffd")
    assert found.unit.endswith("c")
    assert found.error == "é"


async def test_an_id_that_is_not_there(store: Store) -> None:
    assert await store.completions.get("nobody") is None


async def test_many_are_read_at_once_in_the_order_of_the_log(store: Store) -> None:
    """More than fit into one query, some of them gone."""
    names = [f"many-{number}" for number in range(1200)]
    await store.completions.record_many(completion(name) for name in names)
    found = await store.completions.get_many([*reversed(names), "nobody"])
    assert [record.id for record in found] == names
    assert found[7] == await store.completions.get("many-7")
    assert await store.completions.get_many([]) == []


async def test_seq_counts_up_and_an_id_is_taken_once(store: Store) -> None:
    await store.completions.record(completion("a"))
    await store.completions.record(completion("b"))
    assert [row.seq for row in await store.completions.get_many(["b", "a"])] == [1, 2]
    with pytest.raises(StoreUnavailableError, match=r"(?i)unique"):
        await store.completions.record(completion("a", unit="another"))
    assert await store.completions.count() == 2
    kept = await store.completions.get("a")
    assert kept is not None
    assert kept.unit == "a"


async def test_record_many_is_all_or_nothing(store: Store) -> None:
    await store.completions.record_many(completion(f"seed-{i}") for i in range(1200))
    assert await store.completions.count() == 1200
    last = await store.completions.get("seed-1199")
    assert last is not None
    assert last.seq == 1200

    with pytest.raises(StoreUnavailableError, match=r"(?i)unique"):
        await store.completions.record_many([completion("new"), completion("seed-7")])
    assert await store.completions.get("new") is None
    assert await store.completions.count() == 1200


async def test_annotate_sets_what_is_given_and_leaves_the_rest(store: Store) -> None:
    await store.completions.record(completion("a", score=1.0, gold_score=2.0))
    await store.completions.record(completion("b"))

    await store.completions.annotate([Annotation("a", judge_score=3.0, log_ratio=-0.5)])
    await store.completions.annotate([Annotation("a", gold_score=0.0)])

    a = await store.completions.get("a")
    b = await store.completions.get("b")
    assert a is not None
    assert b is not None
    assert (a.score, a.judge_score, a.gold_score, a.log_ratio) == (1.0, 3.0, 0.0, -0.5)
    assert (b.score, b.judge_score, b.gold_score, b.log_ratio) == (None, None, None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_number_that_is_not_finite_is_refused(store: Store, value: float) -> None:
    await store.completions.record(completion("a"))
    with pytest.raises(ScoringError, match="score is"):
        await store.completions.annotate([Annotation("a", score=value)])
    with pytest.raises(ScoringError, match="log_ratio is"):
        await store.completions.record(completion("b", log_ratio=value))
    with pytest.raises(ScoringError, match="candidate score is"):
        await store.completions.record(completion("c", candidates=(candidate(0, score=value),)))
    assert await store.completions.count() == 1


async def test_unscored_lists_what_still_lacks_a_number(store: Store) -> None:
    rows = [
        completion("single"),
        completion("scored", score=1.0),
        completion("failed", status="failed"),
        completion("nothing drawn", candidates=(), chosen=()),
        completion("content not kept", messages=()),
        completion("degraded", degraded="scoring failed"),
        completion("distilled", arm=Arm.DISTILLED, version="v0001", score=1.0),
        completion("distilled, done", arm=Arm.DISTILLED, score=1.0, log_ratio=0.25),
        completion("distilled, other law", arm=Arm.DISTILLED, score=1.0, standard_sampling=False),
        best_of_n("bon", 4),
    ]
    await store.completions.record_many(rows)

    waiting = await store.completions.unscored(10)
    assert [row.id for row in waiting] == ["single", "degraded", "distilled"]
    assert [row.id for row in await store.completions.unscored(1)] == ["single"]
    after = await store.completions.unscored(10, after_seq=waiting[0].seq)
    assert [row.id for row in after] == ["degraded", "distilled"]

    await store.completions.annotate([Annotation("single", score=0.0)])
    await store.completions.annotate([Annotation("distilled", log_ratio=0.0)])
    assert [row.id for row in await store.completions.unscored(10)] == ["degraded"]


async def test_unscored_is_read_from_an_index_of_the_waiting_rows(
    database_url: str, store: Store
) -> None:
    if database_url.startswith("postgresql"):
        explain = "EXPLAIN "
        setup = "SET LOCAL enable_seqscan = off"
    else:
        explain = "EXPLAIN QUERY PLAN "
        setup = "SELECT 1"
    query = f"SELECT seq FROM completions WHERE {UNSCORED} AND seq > 5 ORDER BY seq LIMIT 10"

    def plan(connection: Connection) -> str:
        connection.exec_driver_sql(setup)
        rows = connection.exec_driver_sql(explain + query).all()
        return "\n".join(str(row) for row in rows)

    assert "ix_completions_unscored" in await store.database.read(plan)


async def test_prompts_of_a_split(store: Store) -> None:
    asked = (Message("user", "one"),), (Message("user", "two"),), (Message("user", "three"),)
    await store.completions.record_many(
        [
            completion("a", messages=asked[0], split=Split.GATE),
            completion("b", messages=asked[1], split=Split.TRAIN),
            completion("c", messages=asked[2], split=Split.GATE, status="failed"),
            completion("d", messages=asked[1], split=Split.GATE, may_train=False),
            completion("e", messages=(), split=Split.GATE),
        ]
    )
    assert await store.completions.prompts_of(Split.GATE, 10) == [asked[0], asked[2]]
    assert await store.completions.prompts_of(Split.GATE, 1) == [asked[0]]


async def test_raw_text_is_no_prompt_to_measure_conversations_by(store: Store) -> None:
    raw, asked = (Message("prompt", "Once upon"),), (Message("user", "Once upon"),)
    await store.completions.record_many(
        [
            completion("a", messages=raw, split=Split.GATE, standard_sampling=False),
            completion("b", messages=asked, split=Split.GATE),
        ]
    )
    assert await store.completions.prompts_of(Split.GATE, 10) == [asked]
