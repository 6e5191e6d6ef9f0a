"""A client sends an answer back as it got it, as a turn of the conversation that goes on."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from faulty_vllm_server import MODEL, running_vllm
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from running_gateway import MakeConfig, Run, row_id
from served_gateway import Serve

from bond_core.tokenizing import render_text
from bond_core.types import Message

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
THOUGHT = "Alice greets; greet back"
CHAT = "/v1/chat/completions"


class Thinking:
    """Answers every chat with a thought and a text, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        entry = {"token": "a", "logprob": -0.5, "top_logprobs": []}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "hello", "reasoning": THOUGHT},
            "finish_reason": "stop",
            "token_ids": [5],
            "logprobs": {"content": [entry]},
        }
        choices = [{**choice, "index": index} for index in range(body["n"])]
        return web.json_response({"choices": choices, "prompt_token_ids": [1, 2]})


@pytest.mark.parametrize("arm", ["reference", "bon"])
async def test_a_turn_with_its_reasoning_goes_to_the_engine_and_into_the_row(
    serve: Serve, make_config: MakeConfig, arm: str
) -> None:
    async with running_vllm() as server:
        server.fault = thinking = Thinking()
        engine = {"type": "vllm", "urls": [server.url]}
        async with serve(make_config(engine=engine, model={"name": MODEL})) as served:
            client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
            async with client:
                first = await client.chat.completions.create(model=f"{MODEL}:{arm}", messages=HI)
                turn = cast(ChatCompletionMessageParam, first.choices[0].message)
                second = await client.chat.completions.create(
                    model=f"{MODEL}:{arm}", messages=[*HI, turn, *HI]
                )
                asked = await served.client.get(f"{CHAT}/{second.id}/messages")
    told = {"role": "assistant", "content": "hello", "reasoning": THOUGHT}
    assert thinking.asked[-1]["messages"] == [*HI, told, *HI]
    assert [turn["reasoning"] for turn in asked.json()["data"]] == [None, THOUGHT, None]


async def test_what_only_repeats_says_nothing_and_other_annotations_are_refused(
    run: Run, make_config: MakeConfig
) -> None:
    answer = {"role": "assistant", "content": "hello", "refusal": None, "audio": None}
    plain = [*HI, {"role": "assistant", "content": "hello"}, *HI]
    async with run(make_config()) as running:
        without = await running.post("/v1/best-of-n", messages=plain)
        with_none = await running.post(
            "/v1/best-of-n", messages=[*HI, {**answer, "annotations": []}, *HI]
        )
        with_some = await running.post(
            "/v1/best-of-n", messages=[*HI, {**answer, "annotations": [{}]}, *HI]
        )
        by_proxy = await running.post(
            "/v1/best-of-n",
            messages=[*HI, {**answer, "provider_specific_fields": {"refusal": None}}, *HI],
        )
    assert with_none.json()["choices"] == without.json()["choices"]
    assert by_proxy.json()["choices"] == without.json()["choices"]
    assert with_some.status_code == 400
    assert with_some.json()["error"]["param"] == "messages.1.annotations"


async def test_reasoning_has_an_older_name(run: Run, make_config: MakeConfig) -> None:
    answer = {"role": "assistant", "content": "hello"}
    turns = [
        {**answer, "reasoning": THOUGHT},
        {**answer, "reasoning_content": THOUGHT},
        {**answer, "reasoning_content": THOUGHT, "reasoning": THOUGHT},
        {**answer, "reasoning_content": "", "reasoning": THOUGHT},
    ]
    async with run(make_config()) as running:
        answers = [
            (await running.post("/v1/best-of-n", messages=[*HI, turn, *HI])).json()
            for turn in turns
        ]
        rows = [await running.gateway.store.completions.get(row_id(a)) for a in answers]
        both = {**answer, "reasoning_content": "another", "reasoning": THOUGHT}
        refused = await running.post("/v1/best-of-n", messages=[*HI, both, *HI])
    assert [row and row.messages[1].reasoning for row in rows] == [THOUGHT] * 4
    assert refused.json()["error"]["param"] == "messages.1.reasoning_content"


async def test_only_the_assistant_reasons(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        refused = await running.post("/v1/best-of-n", messages=[{**HI[0], "reasoning": "x"}])
        wrong = await running.post(
            "/v1/best-of-n", messages=[*HI, {"role": "assistant", "content": "", "reasoning": 1}]
        )
    assert refused.status_code == wrong.status_code == 400
    assert refused.json()["error"]["param"] == "messages.0.reasoning"
    assert wrong.json()["error"]["param"] == "messages.1.reasoning"


async def test_reasoning_is_redacted(run: Run, make_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "redact.py"
    file.write_text("def names(texts):\n    return [t.replace('Alice', '[NAME]') for t in texts]\n")
    config = make_config(store={"redact": f"{file}:names"})
    turn = {"role": "assistant", "content": "hello", "reasoning": THOUGHT}
    async with run(config) as running:
        answered = (await running.post("/v1/best-of-n", messages=[*HI, turn, *HI])).json()
        row = await running.gateway.store.completions.get(row_id(answered))
    assert row is not None
    assert [message.reasoning for message in row.messages] == [
        "",
        "[NAME] greets; greet back",
        "",
    ]
    assert b"Alice" not in b"".join(f.read_bytes() for f in config.data_dir.glob("bond.db*"))


def test_a_template_reads_reasoning_by_both_of_its_names() -> None:
    class Tokenizer:
        def apply_chat_template(self, turns: list[dict[str, Any]], **options: Any) -> str:
            return json.dumps(turns)

    turn = Message("assistant", "hello", reasoning=THOUGHT)
    assert json.loads(render_text(Tokenizer(), [turn])) == [
        {
            "role": "assistant",
            "content": "hello",
            "reasoning": THOUGHT,
            "reasoning_content": THOUGHT,
        }
    ]
