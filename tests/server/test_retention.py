"""Lifetimes, deletion by user, and redaction: what is gone is gone, and answers do not wait."""

import asyncio
import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from databases import OpenStoreAt
from published_adapters import challenger, publish
from running_gateway import MakeConfig, Run, Running, eventually, row_id, settled
from stored import best_of_n, completion

from bond_core.config import BondConfig, RetentionConfig
from bond_core.store import Store
from bond_core.types import Arm, PolicyState, SamplingParams
from bond_server.metrics import Metrics
from bond_server.services.retention import DAY_S, Retention

NOW = 100 * DAY_S
DAYS = (1, 5, 20)
"""Ages of the rows below."""


def retention(store: Store, **config: Any) -> Retention:
    return Retention(store, RetentionConfig(**config), Metrics())


async def aged(store: Store) -> None:
    await store.completions.record_many(
        best_of_n(
            f"{days} days",
            2,
            created_at=NOW - days * DAY_S,
            stored=True,
            error="quoted",
            params=SamplingParams(stop=("a word",), further={"tools": ["words"]}, seed=3),
        )
        for days in DAYS
    )


async def test_content_and_rows_have_lifetimes_of_their_own(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url, clock=lambda: NOW)
    await aged(store)
    done = await retention(store, content_days=2, rows_days=10).purge(NOW)
    assert done == {"content": 2, "rows": 1, "answers": 0}
    whole = await store.completions.get("1 days")
    emptied = await store.completions.get("5 days")
    assert whole is not None
    assert emptied is not None
    assert await store.completions.get("20 days") is None
    assert whole.candidates == best_of_n("1 days", 2).candidates
    assert (emptied.messages, emptied.candidates, emptied.prompt_token_ids) == ((), (), ())
    assert (emptied.score, emptied.best_of, emptied.latency_s) == (1.0, 2, 0.1)
    assert (emptied.stored, emptied.may_train, emptied.error) == (False, False, None)
    assert emptied.chosen_tokens == 0
    assert emptied.params == SamplingParams(seed=3)
    assert [r.id for r in await store.completions.claim("t", 10, 60.0)] == ["1 days"]
    assert [r.id for r in await store.completions.winners(2, 10)] == ["1 days"]
    assert await store.completions.unscored(10) == []
    [summary] = await store.completions.summarise()
    assert (summary.arm, summary.requests) == (Arm.BON, 2)  # numbers outlive the words
    again = await retention(store, content_days=2, rows_days=10).purge(NOW)
    assert again == {"content": 0, "rows": 0, "answers": 0}


async def test_without_lifetimes_everything_is_kept(store: Store) -> None:
    await aged(store)
    assert await retention(store).purge(NOW) == {"content": 0, "rows": 0, "answers": 0}
    assert await store.completions.count() == len(DAYS)


async def test_answers_are_committed_while_much_is_deleted(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url)
    await store.completions.record_many(
        best_of_n(f"old {i}", 4, created_at=1.0) for i in range(1500)
    )
    purging = asyncio.create_task(
        retention(store, content_days=1, rows_days=1, chunk_rows=50).purge(time.time())
    )
    waited: list[float] = []
    while not purging.done():
        began = time.perf_counter()
        await store.completions.record(completion(f"new {len(waited)}", created_at=time.time()))
        waited.append(time.perf_counter() - began)
    done = await purging
    assert (done["content"], done["rows"]) == (1500, 1500)
    assert await store.completions.count() == len(waited)
    # 60 chunks; an answer is committed between any two of them, and waits for one at most
    assert len(waited) >= 30
    assert sorted(waited)[len(waited) // 2] < 10


async def test_only_one_gateway_deletes(database_url: str, open_store_at: OpenStoreAt) -> None:
    one, other = [await open_store_at(database_url, clock=lambda: NOW) for _ in range(2)]
    await aged(one)
    assert await other.leases.acquire("retention", "another gateway", 60.0)
    assert (await retention(one, rows_days=10).purge(NOW))["rows"] == 0
    await other.leases.release("retention", "another gateway")
    assert (await retention(one, rows_days=10).purge(NOW))["rows"] == 1


async def test_sqlite_uses_the_space_of_what_is_deleted(
    tmp_path: Path, open_store_at: OpenStoreAt
) -> None:
    file = tmp_path / "bond.db"
    store = await open_store_at(f"sqlite:///{file}")
    sizes: list[int] = []
    for day in range(8):
        await store.completions.record_many(
            best_of_n(f"{day}-{i}", 4, created_at=day * DAY_S, unit="u" * 2000) for i in range(200)
        )
        await retention(store, rows_days=1.5, chunk_rows=100).purge(day * DAY_S + 1)
        pages = await store.database.read(
            lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one()
        )
        sizes.append(pages)
    assert await store.completions.count() == 400
    assert max(sizes[3:]) <= sizes[2] * 1.1


async def test_the_gateway_deletes_by_itself(run: Run, make_config: MakeConfig) -> None:
    lifetimes = {"content_days": 1e-9, "check_every_s": 0.05}
    async with run(make_config(store={"retention": lifetimes})) as running:
        body = (await running.post("/v1/best-of-n")).json()

        async def counted() -> bool:  # after the deletion was committed
            return running.metric("bond_expired_total", kind="content") == 1

        await eventually(counted)
        row = await running.gateway.store.completions.get(row_id(body))
        assert row is not None
        assert row.messages == ()


async def published(store: Store, config: BondConfig, version: str, window: dict[str, int]) -> None:
    path = await publish(config, version, log_window=window)
    await store.policies.insert(replace(challenger(version, path), state=PolicyState.RETIRED))


async def ask_as(running: Running, text: str, **body: Any) -> None:
    messages = [{"role": "user", "content": text}]
    response = await running.client.post(
        "/v1/best-of-n",
        json={"messages": messages, **body},
        headers={"Idempotency-Key": text.replace(" ", "-")},
    )
    assert response.status_code == 200


async def test_a_user_is_deleted_and_the_versions_that_saw_them_are_named(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    config = make_config(store={"url": database_url})
    async with run(config) as running:
        store = running.gateway.store
        for i in range(3):
            await ask_as(running, f"secret of alice {i}", user="alice")
        await ask_as(running, "also alice", safety_identifier="alice", user="someone")
        await ask_as(running, "bob's words", user="bob")
        await settled(running)
        claimed = [r.seq for r in await store.completions.claim("trainer", 10, 60.0)]
        first, last = claimed[0], claimed[-1]
        for version, window in (
            ("v0001", {"first_seq": first, "last_seq": last, "rows": 5}),
            ("v0002", {"first_seq": last + 10, "last_seq": last + 20, "rows": 5}),
            ("v0003", {"rows": 0}),
        ):
            await published(store, config, version, window)

        deleted = (await running.client.delete("/v1/users/alice/completions")).json()
        await published(store, config, "v0004", {"first_seq": first, "last_seq": last})
        [account] = (await running.client.get("/v1/deletions?user=alice")).json()["data"]
        assert (await running.client.get("/v1/deletions?user=bob")).json()["data"] == []
        nobody = (await running.client.delete("/v1/users/nobody/completions")).json()
        left = (await running.client.get("/v1/export")).text
        keys = "SELECT count(*) FROM idempotency_keys"
        answers = await store.database.read(lambda c: c.exec_driver_sql(keys).scalar_one())
    assert (deleted["num_rows"], deleted["versions"]) == (4, ["v0001"])
    assert deleted["subject_hash"] == hashlib.sha256(b"alice").hexdigest()
    assert account["versions"] == ["v0001", "v0004"]  # published later, learned before
    assert (nobody["num_rows"], nobody["versions"]) == (0, [])
    assert "bob's words" in left
    assert "alice" not in left
    assert answers == 1


async def test_a_row_is_in_the_account_of_one_deletion(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    """A client that did not hear of the first deletion asks for another one meanwhile."""
    one, other = [await open_store_at(database_url) for _ in range(2)]
    rows = [replace(best_of_n(f"row {i}", 2), unit="alice", may_train=True) for i in range(500)]
    await one.completions.record_many(rows)
    accounts = await asyncio.gather(
        *(store.deletions.delete_user("alice") for store in (one, other, one))
    )
    first = await one.completions.count()
    told = await one.deletions.latest(10)
    assert first == 0
    assert sum(account.num_rows for account in told) == 500
    assert sum(account.num_learnable for account in told) == 500
    assert max(account.num_rows for account in accounts) > 0


async def test_what_is_deleted_is_not_left_in_sqlites_file(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config()
    async with run(config) as running:
        await ask_as(running, "my-secret-is-swordfish", user="alice")
        await settled(running)
        await running.client.delete("/v1/users/alice/completions")
    left = b"".join(file.read_bytes() for file in config.data_dir.glob("bond.db*"))
    assert b"swordfish" not in left
    assert b"alice" not in left


REDACT = """
import time

def names(texts):
    return [text.replace("Alice", "[NAME]") for text in texts]

def raises(texts):
    raise ValueError("about " + texts[0])

def too_few(texts):
    return texts[:1]

def no_strings(texts):
    return [None for _ in texts]

def slow(texts):
    time.sleep(1)
    return texts
"""


@pytest.fixture
def redact(tmp_path: Path) -> str:
    file = tmp_path / "redact.py"
    file.write_text(REDACT)
    return str(file)


async def test_what_is_redacted_is_kept_in_other_words_and_sent_in_its_own(
    run: Run, make_config: MakeConfig, redact: str
) -> None:
    config = make_config(store={"redact": f"{redact}:names"})
    async with run(config) as running:
        named = await running.client.post(
            "/v1/best-of-n",
            json={"messages": [{"role": "user", "content": "I am Alice"}]},
            headers={"Idempotency-Key": "k"},
        )
        again = await running.client.post(
            "/v1/best-of-n",
            json={"messages": [{"role": "user", "content": "I am Alice"}]},
            headers={"Idempotency-Key": "k"},
        )
        plain = (await running.post("/v1/distilled")).json()
        await settled(running)
        completions = running.gateway.store.completions
        changed = await completions.get(row_id(named.json()))
        unchanged = await completions.get(row_id(plain))
        assert [r.id for r in await completions.claim("t", 10, 60.0)] == [row_id(plain)]
        assert await completions.winners(1, 10) == []
        assert await completions.unscored(10) == []
        assert running.metric("bond_redactions_total", outcome="changed") == 1
        assert running.metric("bond_redactions_total", outcome="unchanged") == 1
    assert changed is not None
    assert unchanged is not None
    assert changed.messages[0].content == "I am [NAME]"
    assert changed.redacted
    assert set(changed.prompt_token_ids) == {0}
    assert {t for c in changed.candidates for t in c.completion.token_ids} == {0}
    assert changed.score is not None
    assert not unchanged.redacted
    assert unchanged.prompt_token_ids[0] != 0
    assert unchanged.score is not None  # measured on what was said
    assert again.json()["error"]["code"] == "answer_not_kept"
    files = b"".join(file.read_bytes() for file in config.data_dir.glob("bond.db*"))
    assert b"Alice" not in files


@pytest.mark.parametrize("function", ["raises", "too_few", "no_strings", "slow"])
async def test_a_redaction_that_fails_keeps_no_content_and_says_so(
    run: Run,
    make_config: MakeConfig,
    redact: str,
    function: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_config(store={"redact": f"{redact}:{function}", "redact_timeout_s": 0.2})
    async with run(config) as running:
        body = (await running.post("/v1/best-of-n")).json()
        row = await running.gateway.store.completions.get(row_id(body))
        assert running.metric("bond_redactions_total", outcome="failed") == 1
    assert body["choices"][0]["message"]["content"]
    assert row is not None
    assert row.messages == ()
    assert row.score is not None
    assert "is kept without content" in caplog.text
    assert "parcel" not in caplog.text
    files = b"".join(file.read_bytes() for file in config.data_dir.glob("bond.db*"))
    assert b"parcel" not in files


WORDS = {
    "stop": ["Alice", "parcel"],
    "tools": [{"type": "function", "function": {"name": "ask", "description": "what Alice wants"}}],
}


async def test_words_in_parameters_do_not_outlive_content(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url, clock=lambda: NOW)
    worded = SamplingParams(stop=("Alice",), seed=3, further={"documents": [{"text": "of Alice"}]})
    await store.completions.record(completion("old", created_at=NOW - 5 * DAY_S, params=worded))
    await retention(store, content_days=2).purge(NOW)
    emptied = await store.completions.get("old")
    assert emptied is not None
    assert emptied.params == SamplingParams(seed=3)


async def test_words_in_parameters_are_redacted(
    run: Run, make_config: MakeConfig, redact: str
) -> None:
    config = make_config(store={"redact": f"{redact}:names"})
    async with run(config) as running:
        body = (await running.post("/v1/distilled", **WORDS)).json()
        await settled(running)
        row = await running.gateway.store.completions.get(row_id(body))
    assert row is not None
    assert row.redacted
    assert row.params.stop == ("[NAME]", "parcel")
    [tool] = row.params.further["tools"]
    assert tool["function"] == {"name": "ask", "description": "what [NAME] wants"}
    files = b"".join(file.read_bytes() for file in config.data_dir.glob("bond.db*"))
    assert b"Alice" not in files


async def test_names_in_messages_are_redacted_and_metadata_alone_keeps_its_tokens(
    run: Run, make_config: MakeConfig, redact: str
) -> None:
    config = make_config(store={"redact": f"{redact}:names"})
    turn = {"role": "user", "content": "hello"}
    pairs = {"who": "Alice", "why": "parcel"}
    async with run(config) as running:
        named = (await running.post("/v1/best-of-n", messages=[{**turn, "name": "Alice"}])).json()
        tagged = (await running.post("/v1/best-of-n", messages=[turn], metadata=pairs)).json()
        completions = running.gateway.store.completions
        by_name = await completions.get(row_id(named))
        by_pair = await completions.get(row_id(tagged))
        assert running.metric("bond_redactions_total", outcome="changed") == 2
        path = f"/v1/chat/completions/{tagged['id']}"
        changed = await running.client.post(path, json={"metadata": {"for": "Alice and Bob"}})
        found = await running.client.get(
            "/v1/chat/completions", params={"metadata[for]": "[NAME] and Bob"}
        )
    assert by_name is not None
    assert (by_name.messages[0].name, by_name.redacted) == ("[NAME]", True)
    assert set(by_name.prompt_token_ids) == {0}
    assert by_pair is not None
    assert by_pair.origin.metadata == {"who": "[NAME]", "why": "parcel"}
    assert (by_pair.redacted, by_pair.may_train) == (False, True)
    assert set(by_pair.prompt_token_ids) != {0}
    assert changed.json()["metadata"] == {"for": "[NAME] and Bob"}
    assert [item["id"] for item in found.json()["data"]] == [tagged["id"]]
    files = b"".join(file.read_bytes() for file in config.data_dir.glob("bond.db*"))
    assert b"Alice" not in files
    assert b"[NAME]" in files


async def test_new_metadata_that_cannot_be_redacted_is_not_kept(
    run: Run, make_config: MakeConfig, redact: str
) -> None:
    config = make_config(store={"redact": f"{redact}:names"})
    async with run(config) as running:
        body = (await running.post("/v1/best-of-n", metadata={"a": "b"})).json()
        redactor: Any = running.gateway.stored._redactor

        def broken(texts: list[str]) -> list[str]:
            raise ValueError(texts[0])

        redactor._function = broken
        path = f"/v1/chat/completions/{body['id']}"
        changed = await running.client.post(path, json={"metadata": {"a": "Alice"}})
    assert (changed.status_code, changed.json()["metadata"]) == (200, {})
