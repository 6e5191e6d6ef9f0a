"""Stored completions, in OpenAI's form, over the real app and both databases."""

import hashlib
import json
from typing import Any

import pytest
from running_gateway import MODEL, MakeConfig, Run, Running, row_id, settled
from stored import all_rows

PATH = "/v1/chat/completions"


async def ask(running: Running, text: str, **body: Any) -> dict[str, Any]:
    body = {"model": "tiny:1b:bon", **body}
    response = await running.post(PATH, messages=[{"role": "user", "content": text}], **body)
    assert response.status_code == 200, response.text
    return response.json()


async def page(running: Running, **query: Any) -> dict[str, Any]:
    response = await running.client.get(PATH, params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_completion_is_found_as_it_was_answered(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    async with run(make_config(store={"url": database_url})) as running:
        answered = await ask(
            running,
            "hello",
            n=2,
            temperature=0.5,
            seed=7,
            user="né",
            metadata={"team": "a", "k é": 'v "quoted"'},
            store=True,
        )
        found = (await running.client.get(f"{PATH}/{answered['id']}")).json()
        messages = (await running.client.get(f"{PATH}/{answered['id']}/messages")).json()
    for key in ("id", "object", "created", "model", "system_fingerprint", "choices", "usage"):
        assert found[key] == answered[key], key
    assert found["metadata"] == {"team": "a", "k é": 'v "quoted"'}
    assert (found["temperature"], found["seed"], found["input_user"]) == (0.5, 7, "né")
    assert messages == {
        "object": "list",
        "data": [
            {
                "id": f"{answered['id']}-0",
                "role": "user",
                "content": "hello",
                "name": None,
                "tool_call_id": None,
                "tool_calls": None,
                "reasoning": None,
                "content_parts": None,
            }
        ],
        "first_id": f"{answered['id']}-0",
        "last_id": f"{answered['id']}-0",
        "has_more": False,
    }


async def test_pages_filters_and_cursors(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    async with run(make_config(store={"url": database_url})) as running:
        ids = [
            (await ask(running, f"q{i}", metadata={"parity": str(i % 2), "i": str(i)}))["id"]
            for i in range(7)
        ]
        other = (await ask(running, "q", model="tiny:1b:reference"))["id"]
        await ask(running, "not to be stored", store=False)

        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            found = await page(running, limit=3, **after)
            seen += [item["id"] for item in found["data"]]
            assert (found["first_id"], found["last_id"]) == (
                found["data"][0]["id"],
                found["data"][-1]["id"],
            )
            if not found["has_more"]:
                break
            after = {"after": found["last_id"]}
        assert seen == [*ids, other]

        async def listed(**query: Any) -> list[str]:
            return [item["id"] for item in (await page(running, **query))["data"]]

        assert await listed(order="desc", limit=2) == [other, ids[6]]
        assert await listed(order="desc", limit=2, after=ids[6]) == [ids[5], ids[4]]
        assert await listed(model="tiny:1b:reference") == [other]
        assert await listed(**{"metadata[parity]": "1"}) == [ids[1], ids[3], ids[5]]
        assert await listed(**{"metadata[parity]": "1", "metadata[i]": "3"}) == [ids[3]]
        assert await listed(**{"metadata[parity]": "2"}) == []
        empty = await page(running, model="nobody")
        assert empty == {
            "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
        }  # fmt: skip
        wrong = [
            await running.client.get(PATH, params=query)
            for query in ({"after": "chatcmpl-x"}, {"limit": 0}, {"order": "up"}, {"metadata": "x"})
        ]
    assert [response.status_code for response in wrong] == [400] * 4
    params = [response.json()["error"]["param"] for response in wrong]
    assert params == ["after", "limit", "order", "metadata"]


async def test_metadata_is_replaced_and_found_by(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    async with run(make_config(store={"url": database_url})) as running:
        id = (await ask(running, "q", metadata={"a": "1", "b": "2"}))["id"]
        updated = await running.client.post(f"{PATH}/{id}", json={"metadata": {"c": "3"}})
        assert updated.json()["metadata"] == {"c": "3"}
        assert (await page(running, **{"metadata[a]": "1"}))["data"] == []
        assert [i["id"] for i in (await page(running, **{"metadata[c]": "3"}))["data"]] == [id]
        cleared = await running.client.post(f"{PATH}/{id}", json={"metadata": None})
        assert cleared.json()["metadata"] == {}
        too_long = await running.client.post(f"{PATH}/{id}", json={"metadata": {"k" * 65: "v"}})
        unknown = await running.client.post(f"{PATH}/{id}", json={"metadata": {}, "model": "x"})
    assert (too_long.status_code, unknown.status_code) == (400, 400)


async def test_a_deleted_completion_is_gone_for_everybody(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    async with run(make_config(store={"url": database_url})) as running:
        kept, gone = await ask(running, "where is it?"), await ask(running, "is it gone?")
        deleted = await running.client.delete(f"{PATH}/{gone['id']}")
        again = await running.client.delete(f"{PATH}/{gone['id']}")
        assert deleted.json() == {
            "object": "chat.completion.deleted", "id": gone["id"], "deleted": True,
        }  # fmt: skip
        responses = [
            again,
            await running.client.get(f"{PATH}/{gone['id']}"),
            await running.client.get(f"{PATH}/{gone['id']}/messages"),
            await running.client.post(f"{PATH}/{gone['id']}", json={"metadata": {}}),
        ]
        await settled(running)
        store = running.gateway.store
        claimed = await store.completions.claim("trainer", 10, 60.0)
        assert [r.id for r in claimed] == [row_id(kept)]
        assert await store.completions.get(row_id(gone)) is None
        [account] = (await running.client.get("/v1/deletions")).json()["data"]
    assert [(r.status_code, r.json()["error"]["code"]) for r in responses] == [
        (404, "completion_not_found")
    ] * 4
    assert (account["subject"], account["num_rows"], account["num_learnable"]) == (
        "completion",
        1,
        1,
    )
    digest = hashlib.sha256(row_id(gone).encode()).hexdigest()
    assert (account["subject_hash"], account["versions"]) == (digest, [])


async def test_only_what_is_to_be_stored_can_be_seen(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(server={"train_on_traffic": False})) as running:
        silent = await ask(running, "says nothing of store")
        wanted = await ask(running, "wants it", store=True)
        raw = {"model": "tiny:1b", "prompt": "raw", "store": True}
        await running.client.post("/v1/completions", json=raw)
        ids = [item["id"] for item in (await page(running))["data"]]
        refused = await running.client.get(f"{PATH}/{silent['id']}")
    assert ids == [wanted["id"]]
    assert refused.status_code == 404


async def test_without_content_nothing_is_stored(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(server={"log_content": False})) as running:
        await ask(running, "hello", store=True, metadata={"secret": "pair"})
        assert (await page(running))["data"] == []
        assert (await running.client.get("/v1/export")).text == ""
        [row] = await all_rows(running.gateway.store)
    assert row.origin.metadata == {}


async def test_a_line_of_an_export_has_the_id_that_the_answer_had(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        asked = {"model": f"{MODEL}:bon", "prompt": ["Once", "Twice"]}
        texts = (await running.client.post("/v1/completions", json=asked)).json()
        chat = await ask(running, "and a chat")
        lines = (await running.client.get("/v1/export")).text.splitlines()
        after = {"after": texts["id"]}
        rest = (await running.client.get("/v1/export", params=after)).text.splitlines()
    ids = [*(prompt["id"] for prompt in texts["bond"]["prompts"]), chat["id"]]
    assert [id.partition("-")[0] for id in ids] == ["cmpl", "cmpl", "chatcmpl"]
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(ids)
    assert rest == lines[lines.index(next(x for x in lines if texts["id"] in x)) + 1 :]


async def test_an_export_is_every_row_with_all_candidates_a_page_at_a_time(
    run: Run, make_config: MakeConfig, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bond_server.services.stored.EXPORT_PAGE", 4)
    async with run(make_config(store={"url": database_url})) as running:
        answers = [await ask(running, f"q{i}", metadata={"i": str(i)}) for i in range(9)]
        await ask(running, "kept, not stored", store=False)
        await settled(running)
        response = await running.client.get("/v1/export")
        rest = await running.client.get("/v1/export", params={"after": answers[6]["id"]})
        one = await running.client.get("/v1/export", params={"metadata[i]": "3"})
        unknown = await running.client.get("/v1/export", params={"after": "nobody"})
        stored = await all_rows(running.gateway.store)
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [line["id"] for line in lines] == [f"chatcmpl-{row.id}" for row in stored]
    assert [line["id"] for line in lines[:9]] == [answer["id"] for answer in answers]
    for line, row in zip(lines, stored, strict=True):
        assert line["messages"] == [m.as_dict() for m in row.messages]
        assert [(c["text"], c["score"]) for c in line["candidates"]] == [
            (c.completion.text, c.score) for c in row.candidates
        ]
        assert (line["chosen"], line["may_train"]) == (list(row.chosen), row.may_train)
    assert [json.loads(line)["id"] for line in rest.text.splitlines()] == [
        line["id"] for line in lines[7:]
    ]
    assert [json.loads(line)["metadata"] for line in one.text.splitlines()] == [{"i": "3"}]
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")
