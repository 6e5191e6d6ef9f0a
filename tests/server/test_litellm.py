"""Behind LiteLLM's proxy, configured as docs/litellm.md says."""

import asyncio
import os
import re
import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from running_gateway import MODEL, REWARDS, eventually
from served_gateway import HI, Served, serving

from bond_core.config import load_config

pytestmark = [pytest.mark.litellm, pytest.mark.asyncio(loop_scope="module")]

COMMAND = os.environ.get("BONDSERVE_TEST_LITELLM", "")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "litellm.md"
START_S = 240.0


@dataclass(frozen=True, slots=True)
class Proxied:
    """A gateway, and a client of the proxy before it."""

    served: Served
    client: AsyncOpenAI


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@asynccontextmanager
async def proxy(folder: Path, served: Served, key: str) -> AsyncGenerator[str]:
    """LiteLLM's proxy over the gateway, by the configuration on the page."""
    assert COMMAND, "run make test-litellm, which installs the proxy"
    [page_config] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config = folder / "config.yaml"
    config.write_text(page_config.replace("openai/NAME", f"openai/{MODEL}"))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "BOND_API_BASE": f"{served.url}/v1",
        "BOND_API_KEY": "none",
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch prices otherwise
    }
    log = folder / "proxy.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
            env=environment,
            cwd=folder,
            stdout=out,
            stderr=out,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(trust_env=False) as client:

                async def alive() -> bool:
                    assert process.returncode is None, log.read_text()
                    try:
                        return (await client.get(f"{url}/health/liveliness")).status_code == 200
                    except httpx.TransportError:
                        return False

                await eventually(alive, START_S)
            yield url
        finally:
            process.kill()
            await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Proxied]:
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "rewards.py").write_text(REWARDS)
    config = load_config(
        flags={
            "model": {"path": str(folder / "no-model"), "name": MODEL},
            "engine": {"type": "fake", "delay_s": 0.02},
            "scorer": {"type": "function", "function": f"{folder / 'rewards.py'}:length"},
            "data_dir": str(folder / "data"),
            "server": {"keep_alive_s": 0.1},
        },
        environ={},
    )
    key = f"sk-{secrets.token_hex(32)}"
    async with (
        serving(config) as served,
        proxy(folder, served, key) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield Proxied(served, client)


async def test_best_of_n_and_its_headers_pass(proxied: Proxied) -> None:
    raw = await proxied.client.chat.completions.with_raw_response.create(
        model="bond-best",
        messages=HI,  # type: ignore[arg-type]
        seed=3,
        n=2,
        user="ann",
        extra_headers={"x-bond-unit": "u-1", "x-request-id": "mine-1"},
        extra_body={"bond": {"return_candidates": True}},
    )
    answer: Any = raw.parse()
    candidates = sorted(answer.bond["candidates"], key=lambda c: -c["score"])
    assert len(candidates) == 16  # as the configuration says
    assert [c.message.content for c in answer.choices] == [c["text"] for c in candidates[:2]]
    assert answer.usage.completion_tokens == sum(c["tokens"] for c in candidates)
    assert answer.usage.bond["n"] == 16
    assert raw.headers["llm_provider-x-bond-arm"] == "bon"
    assert raw.headers["llm_provider-x-bond-n"] == "16"
    assert raw.headers["request-id"] == "mine-1"
    row = await proxied.served.gateway.store.completions.get(answer.id.removeprefix("chatcmpl-"))
    assert row is not None
    assert (row.unit, row.requested_model, row.params.seed) == ("u-1", f"{MODEL}:bon", 3)


async def test_a_user_keeps_its_arm(proxied: Proxied) -> None:
    answer = await proxied.client.chat.completions.create(
        model="bond",
        messages=HI,  # type: ignore[arg-type]
        user="ann",
        extra_body={"best_of": 3},
    )
    row = await proxied.served.gateway.store.completions.get(answer.id.removeprefix("chatcmpl-"))
    assert row is not None
    assert (row.unit, row.best_of) == ("ann", 3)


async def test_streams_pass_piece_by_piece(proxied: Proxied) -> None:
    fields: Any = {"messages": HI, "seed": 3, "max_tokens": 12}
    for model in ("bond-reference", "bond-best"):
        whole = await proxied.client.chat.completions.create(model=model, **fields)
        stream = await proxied.client.chat.completions.create(
            model=model, stream=True, stream_options={"include_usage": True}, **fields
        )
        chunks = [chunk async for chunk in stream]
        texts = [c.delta.content or "" for chunk in chunks for c in chunk.choices]
        assert "".join(texts) == whole.choices[0].message.content
        if model == "bond-reference":
            assert len([text for text in texts if text]) > 3
        reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert reasons == [whole.choices[0].finish_reason]
        [usage] = [chunk.usage for chunk in chunks if chunk.usage]
        assert whole.usage is not None
        assert usage.completion_tokens == whole.usage.completion_tokens
        [bond] = [chunk.bond for chunk in chunks if getattr(chunk, "bond", None)]  # type: ignore[attr-defined]
        assert bond["best_of"] == (16 if model == "bond-best" else 1)


async def test_errors_keep_their_status_and_parameter(proxied: Proxied) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean best_of") as wrong:
        await proxied.client.chat.completions.create(
            model="bond-reference",
            messages=HI,  # type: ignore[arg-type]
            extra_body={"best_off": 2},
        )
    assert wrong.value.param == "best_off"
    assert wrong.value.type == "invalid_request_error"


async def test_a_client_that_goes_away_ends_the_work(proxied: Proxied) -> None:
    engine, fields = proxied.served.engine, {"messages": HI, "stream": True, "seed": 3}
    create: Any = proxied.client.chat.completions.create
    engine._delay_s, was = 20.0, engine._delay_s

    async def idle() -> bool:
        return engine.in_progress == 0

    async def at_work() -> bool:
        return engine.in_progress > 0

    try:
        stream = await create(model="bond-reference", **fields)
        await anext(stream)
        assert engine.in_progress == 1
        await stream.close()
        await eventually(idle, 15)
        asking = asyncio.create_task(create(model="bond-best", **fields))
        await eventually(at_work, 15)
        asking.cancel()
        await eventually(idle, 15)
    finally:
        engine._delay_s = was


async def test_raw_text_passes(proxied: Proxied) -> None:
    answer: Any = await proxied.client.completions.create(
        model="bond-best", prompt="where is", seed=3, max_tokens=5
    )
    assert answer.choices[0].text
    assert answer.bond["best_of"] == 16


async def test_an_answer_is_sent_back_as_the_next_turn(proxied: Proxied) -> None:
    async def ask(*turns: Any, **fields: Any) -> Any:
        answer = await proxied.client.chat.completions.create(
            model="bond-reference",
            # plain dicts and the SDK's own answers, which it takes though its types do not say so
            messages=[*HI, *turns],  # type: ignore[list-item]
            seed=3,
            **fields,
        )
        return answer.choices[0].message

    tool: Any = {"type": "function", "function": {"name": "find", "parameters": {}}}
    said = await ask()
    plain = {"role": "assistant", "content": said.content}
    assert (await ask(said, *HI)).content == (await ask(plain, *HI)).content
    called = await ask(tools=[tool], tool_choice="required")
    [call] = called.tool_calls
    found = {"role": "tool", "tool_call_id": call.id, "content": "in Lyon"}
    assert (await ask(called, found, tools=[tool], tool_choice="none")).content
