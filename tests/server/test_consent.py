"""What a key agrees to: whether content is kept, and whether the trainer may learn from it."""

import httpx
import pytest
from api_keys import bearer, make_key
from running_gateway import MakeConfig, Run, settled
from stored import completion

from bond_core.store import CompletionRecord
from bond_core.types import Candidate, Completion, Message, SamplingParams, TokenDetail, ToolCall
from bond_server.services.recording import without_content

TEXT = "where is my parcel?"


@pytest.mark.parametrize(
    ("deployment", "key", "store", "may_train"),
    [
        # the deployment's setting, unless the key or the request says otherwise
        (True, None, None, True),
        (False, None, None, False),
        (False, None, True, True),
        (True, None, False, False),
        # a key that agrees is the default of its requests
        (False, True, None, True),
        (True, True, False, False),
        # one that does not agree is never learned from
        (True, False, None, False),
        (True, False, True, False),
        (False, False, True, False),
    ],
)
async def test_consent_to_training(
    run: Run,
    make_config: MakeConfig,
    deployment: bool,
    key: bool | None,
    store: bool | None,
    may_train: bool,
) -> None:
    async with run(make_config(server={"train_on_traffic": deployment})) as running:
        _, secret = await make_key(running, ["infer"], train=key)
        body = {"messages": [{"role": "user", "content": TEXT}], "store": store}
        response = await running.client.post("/v1/distilled", json=body, headers=bearer(secret))
        row = await row_of(running.gateway.store.completions, response)
    assert row.may_train is may_train
    assert row.messages[0].content == TEXT


@pytest.mark.parametrize(
    ("deployment", "key", "kept"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
async def test_content_is_kept_as_the_key_says(
    run: Run, make_config: MakeConfig, deployment: bool, key: bool | None, kept: bool
) -> None:
    async with run(make_config(server={"log_content": deployment})) as running:
        agreed, secret = await make_key(running, ["infer"], log_content=key, train=True)
        body = {"messages": [{"role": "user", "content": TEXT}], "store": True}
        response = await running.client.post("/v1/best-of-n", json=body, headers=bearer(secret))
        await settled(running)
        row = await row_of(running.gateway.store.completions, response)
    answer = response.json()
    assert row.key == agreed.id
    assert row.may_train is kept
    assert [m.content for m in row.messages] == ([TEXT] if kept else [])
    texts = {c.completion.text for c in row.candidates}
    assert (answer["choices"][0]["message"]["content"] in texts) is kept
    if not kept:
        assert texts == {""}
        assert {t for c in row.candidates for t in c.completion.token_ids} == {0}
    tokens = sum(len(c.completion.token_ids) for c in row.candidates)
    assert tokens == answer["usage"]["completion_tokens"]  # numbers are kept either way


def test_no_words_are_left_in_a_row_without_content() -> None:
    call = ToolCall("call-1", "look_up", '{"secret": 1}')
    drawn = Completion(
        "secret", (5, 6), (-0.5, -0.25), "tool_calls",
        (TokenDetail("secret", -0.5),), (call,), "secret thoughts",
    )  # fmt: skip
    params = SamplingParams(stop=("secret",), further={"tools": [{"name": "secret"}]}, top_k=3)
    record = completion(
        "a",
        messages=(Message("assistant", "secret", tool_calls=(call,)),),
        candidates=(Candidate(0, drawn, 1.5),),
        params=params,
    )
    bare = without_content(record)
    assert "secret" not in repr(bare)
    assert "look_up" not in repr(bare)
    [candidate] = bare.candidates
    assert (candidate.score, candidate.completion.logprobs) == (1.5, (-0.5, -0.25))
    assert candidate.completion.token_ids == (0, 0)
    assert candidate.completion.finish_reason == "tool_calls"
    assert (bare.params.top_k, bare.prompt_token_ids, bare.may_train) == (3, (0, 0, 0), False)


async def row_of(completions: object, response: httpx.Response) -> CompletionRecord:
    assert response.status_code == 200, response.text
    row = await completions.get(  # type: ignore[attr-defined]
        response.json()["id"].removeprefix("chatcmpl-")
    )
    assert row is not None
    return row
