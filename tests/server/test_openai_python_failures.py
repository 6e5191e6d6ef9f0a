"""The unmodified `openai` package of Python against the gateway: errors, retries, time-outs."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI
from openai_package import BON, HI, REFERENCE
from running_gateway import MakeConfig, eventually
from served_gateway import Serve, Served

from bond_core.engines.base import Partial
from bond_core.errors import EngineUnavailableError
from bond_core.types import Conversation, Generation, SamplingParams


async def test_wrong_requests_are_the_errors_of_the_package(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        await client.chat.completions.create(model=REFERENCE, messages=HI, temperature=3)
    assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="did you mean best_of") as unknown:
        await client.chat.completions.create(
            model=REFERENCE, messages=HI, extra_body={"best_off": 2}
        )
    assert (unknown.value.param, unknown.value.code) == ("best_off", "unknown_parameter")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=REFERENCE, messages=HI, service_tier="flex")
    assert (refused.value.param, refused.value.code) == ("service_tier", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-9", messages=HI, stream=True)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as route:
        await client.embeddings.create(model=REFERENCE, input="hi")
    assert route.value.code == "route_not_found"
    assert missing.value.request_id


async def test_an_error_inside_a_stream_is_raised(serve: Serve, make_config: MakeConfig) -> None:
    config = make_config(engine={"type": "fake", "delay_s": 20}, server={"keep_alive_s": 0.05})
    async with (
        serve(config) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client,
    ):
        stream = await client.chat.completions.create(model=BON, messages=HI, stream=True)
        await served.engine.close()
        with pytest.raises(openai.APIError, match="closed while the request ran") as error:
            async for _ in stream:
                pass
        assert (error.value.code, error.value.type) == ("engine_unavailable", "server_error")


async def test_a_503_is_tried_again(
    served: Served, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, attempts = served.engine, [0]
    generate = engine.generate

    async def recovers(
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        attempts[0] += 1
        engine.failure = EngineUnavailableError("restarting") if attempts[0] == 1 else None
        return await generate(version, prompt, params, n, partial)

    monkeypatch.setattr(engine, "generate", recovers)
    answer = await client.with_options(max_retries=2).chat.completions.create(
        model=REFERENCE, messages=HI
    )
    assert attempts == [2]
    assert answer.choices[0].message.content
    engine.failure = EngineUnavailableError("gone")
    monkeypatch.setattr(engine, "generate", generate)
    with pytest.raises(openai.InternalServerError) as away:
        await client.chat.completions.create(model=REFERENCE, messages=HI)
    assert (away.value.status_code, away.value.code) == (503, "engine_unavailable")


async def test_headers_and_request_ids(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=BON, messages=HI, extra_headers={"x-request-id": "mine-1", "x-bond-unit": "u"}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "mine-1"
    assert raw.headers["x-bond-arm"] == "bon"
    assert raw.headers["x-bond-n"] == "4"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse()._request_id == "mine-1"
    async with client.chat.completions.with_streaming_response.create(
        model=BON, messages=HI, stream=True
    ) as streamed:
        lines = [line async for line in streamed.iter_lines() if line]
        assert streamed.headers["x-bond-stream"] == "buffered"
        assert streamed.headers["x-request-id"]
    assert lines[-1] == "data: [DONE]"


async def test_a_timeout_and_a_cancellation_end_the_work(
    serve: Serve, make_config: MakeConfig
) -> None:
    config = make_config(engine={"type": "fake", "delay_s": 60}, server={"keep_alive_s": 0.05})
    async with (
        serve(config) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):

        async def at_work() -> bool:
            return served.engine.in_progress == 4

        async def idle() -> bool:
            return served.engine.in_progress == 0

        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model=BON, messages=HI, timeout=1.5)
        await eventually(idle)
        asking = asyncio.create_task(client.chat.completions.create(model=BON, messages=HI))
        await eventually(at_work)
        asking.cancel()
        await eventually(idle)
        stream = await client.chat.completions.create(
            model=REFERENCE, messages=HI, stream=True, max_tokens=600, seed=1
        )
        assert served.engine.in_progress == 1
        await stream.close()
        await eventually(idle)

        async def recorded() -> bool:
            bon, one = [
                served.metric("bond_log_rows_total", arm=arm, status="cancelled")
                for arm in ("bon", "reference")
            ]
            return (bon, one) == (2, 1)

        await eventually(recorded)
