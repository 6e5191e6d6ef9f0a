"""The unmodified `openai` package of Python against the gateway: what it asks and reads."""

import asyncio
from typing import Any, cast

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai_package import BON, DISTILLED, HI, REFERENCE, TOOL, bond
from running_gateway import MODEL, MakeConfig
from served_gateway import Serve


def test_the_blocking_client_asks_and_streams(serve: Serve, make_config: MakeConfig) -> None:
    def ask(url: str) -> tuple[str | None, str]:
        with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            whole = client.chat.completions.create(model=REFERENCE, messages=HI, seed=3)
            with client.chat.completions.create(
                model=REFERENCE, messages=HI, seed=3, stream=True
            ) as chunks:
                pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
            return whole.choices[0].message.content, "".join(pieces)

    async def main() -> tuple[str | None, str]:
        async with serve(make_config()) as served:
            return await asyncio.to_thread(ask, served.url)

    whole, joined = asyncio.run(main())
    assert whole
    assert joined == whole


async def test_an_answer_has_every_field_of_the_dialect(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=BON,
        messages=[{"role": "developer", "content": [{"type": "text", "text": "be kind"}]}, *HI],
        seed=3,
        n=2,
        extra_body={"best_of": 4, "bond": {"return_candidates": True}},
        max_completion_tokens=20,
        user="u",
        metadata={"session_id": "s"},
        store=False,
    )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == BON
    candidates = bond(answer)["candidates"]
    by_score = sorted(candidates, key=lambda c: -c["score"])
    assert [c.message.content for c in answer.choices] == [c["text"] for c in by_score[:2]]
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].message.refusal is None
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(c["tokens"] for c in candidates)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.model_extra == {
        "bond": {
            "n": 4,
            "ended": 4,
            "chosen_completion_tokens": sum(c["tokens"] for c in by_score[:2]),
            "cut_completion_tokens": 0,
            "reward_tokens": 4 * answer.usage.prompt_tokens + answer.usage.completion_tokens,
        }
    }


async def test_a_stream_and_its_usage(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=REFERENCE, messages=HI, seed=3)
    stream = await client.chat.completions.create(
        model=REFERENCE, messages=HI, seed=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert bond(chunks[-2])["arm"] == "reference"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


@pytest.mark.parametrize("model", [REFERENCE, BON])
async def test_the_stream_helper_rebuilds_the_answer(model: str, client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model=model, messages=HI, seed=3, logprobs=True, top_logprobs=2
    )
    async with client.chat.completions.stream(
        model=model,
        messages=HI,
        seed=3,
        logprobs=True,
        top_logprobs=2,
        stream_options={"include_usage": True},
    ) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("content.done") == 1
    assert "content.delta" in kinds
    assert "logprobs.content.delta" in kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs == whole.choices[0].logprobs
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage == whole.usage


async def test_logprobs_are_told_of_each_token(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=REFERENCE, messages=HI, seed=3, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    text = "".join(token.token for token in logprobs.content)
    assert text == answer.choices[0].message.content
    for token in logprobs.content:
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) == 3
        falling = [other.logprob for other in token.top_logprobs]
        assert falling == sorted(falling, reverse=True)
        named = {other.token: other.logprob for other in token.top_logprobs}
        assert named.get(token.token, token.logprob) == token.logprob <= 0


async def test_the_tool_call_of_the_chosen_candidate_is_kept(client: AsyncOpenAI) -> None:
    # of the fake engine every candidate with an odd number calls, if it may
    answer = await client.chat.completions.create(
        model=BON,
        messages=HI,
        seed=3,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "find_parcel"}},
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "find_parcel"
    assert bond(answer)["degraded"] == "tool_calls_unscored"
    again = await client.chat.completions.create(
        model=BON,
        messages=[
            *HI,
            cast(ChatCompletionMessageParam, choice.message.model_dump(exclude_none=True)),
            {"role": "tool", "tool_call_id": call.id, "content": "in Lyon"},
        ],
        tools=[TOOL],
        tool_choice="none",
    )
    assert again.choices[0].finish_reason in ("stop", "length")
    assert again.choices[0].message.content
    assert bond(again)["degraded"] is None


@pytest.mark.parametrize("model", [REFERENCE, BON])
async def test_tool_calls_are_streamed(model: str, client: AsyncOpenAI) -> None:
    choice = {"type": "function", "function": {"name": "find_parcel"}}
    fields: Any = {"messages": HI, "seed": 3, "tools": [TOOL], "tool_choice": choice}
    whole = await client.chat.completions.create(model=model, **fields)
    [expected] = whole.choices[0].message.tool_calls or []
    async with client.chat.completions.stream(model=model, **fields) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert expected.type == "function"
    assert (call.id, call.type) == (expected.id, "function")
    assert call.function.name == "find_parcel"
    assert call.function.arguments == expected.function.arguments
    assert final.choices[0].finish_reason == "tool_calls"
    [done] = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert (done.name, done.arguments) == ("find_parcel", expected.function.arguments)


async def test_a_response_format_reaches_the_engine(client: AsyncOpenAI) -> None:
    plain, formatted, text = [
        (
            await client.chat.completions.create(
                model=REFERENCE, messages=HI, seed=3, extra_body=extra
            )
        ).choices[0]
        for extra in (
            {},
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "text"}},
        )
    ]
    assert formatted.message.content != plain.message.content
    assert text.message.content == plain.message.content  # it asks for nothing


async def test_raw_text_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(
        model=REFERENCE, prompt="where is", seed=3, n=2, best_of=4, max_tokens=6, logprobs=2
    )
    assert whole.object == "text_completion"
    assert whole.id.startswith("cmpl-")
    assert bond(whole)["best_of"] == 4
    for choice in whole.choices:
        logprobs = choice.logprobs
        assert logprobs is not None
        assert "".join(logprobs.tokens or []) == choice.text
        offsets = logprobs.text_offset or []
        assert offsets == [len("".join((logprobs.tokens or [])[:i])) for i in range(len(offsets))]
        assert all(len(top) == 2 for top in logprobs.top_logprobs or [])
    stream = await client.completions.create(
        model=REFERENCE,
        prompt="where is",
        seed=3,
        n=2,
        best_of=4,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, usage = {0: "", 1: ""}, None
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [texts[0], texts[1]] == [choice.text for choice in whole.choices]
    assert usage == whole.usage


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    ids = [model.id async for model in client.models.list()]
    assert ids == [MODEL, REFERENCE, BON, DISTILLED, f"{DISTILLED}@v0000"]
    found = await client.models.retrieve(BON)
    assert (found.id, found.object, found.owned_by) == (BON, "model", "bondserve")
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'") as missing:
        await client.models.retrieve("gpt-9")
    assert (missing.value.code, missing.value.type) == ("model_not_found", "invalid_request_error")


async def test_stored_completions_are_listed_changed_and_deleted(client: AsyncOpenAI) -> None:
    answers = [
        await client.chat.completions.create(
            model=REFERENCE, messages=HI, store=True, metadata={"topic": topic}
        )
        for topic in ("parcel", "parcel", "refund")
    ]
    stored = client.chat.completions
    ids = [entry.id async for entry in stored.list(metadata={"topic": "parcel"}, limit=1)]
    assert ids == [answer.id for answer in answers[:2]]
    found = await stored.retrieve(answers[0].id)
    assert found.choices[0].message.content == answers[0].choices[0].message.content
    turns = [turn.content async for turn in stored.messages.list(answers[0].id)]
    assert turns == ["where is my parcel?"]
    changed = await stored.update(answers[0].id, metadata={"topic": "refund"})
    assert changed.id == answers[0].id
    ids = [entry.id async for entry in stored.list(metadata={"topic": "refund"})]
    assert ids == [answers[0].id, answers[2].id]
    deleted = await stored.delete(answers[0].id)
    assert (deleted.deleted, deleted.id) == (True, answers[0].id)
    with pytest.raises(openai.NotFoundError):
        await stored.retrieve(answers[0].id)
