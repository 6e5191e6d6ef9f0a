"""A deadline cuts single samples too, everything drawn until then is counted, and an engine or
scorer that gives up by its own clock is not taken for one."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from api_keys import bearer, make_key
from held_engine import Held
from running_gateway import MODEL, MakeConfig, Run, Running, row_id, settled
from served_gateway import HI, Serve, told
from stored import all_rows

from bond_core.config import FakeEngineConfig, ModelConfig
from bond_core.engines.base import Partial
from bond_core.engines.fake import FakeEngine
from bond_core.engines.fake_language import END_TOKEN
from bond_core.errors import DeadlineError, EngineUnavailableError
from bond_core.store import KeyLimits
from bond_core.types import Completion, Conversation, Generation, Message, SamplingParams, TextDelta
from bond_server.services.best_of_n import SCORING_FAILED, select
from bond_server.services.drawing import DEADLINE, Drawn, Work, draw_all, draw_until, stream_until

CHAT = "/v1/chat/completions"
PROMPT = (Message("user", "where is my parcel?"),)
NO_END = {END_TOKEN: -100.0}
"""An answer goes on to its limit."""
WORK = Work("v0000", PROMPT, SamplingParams(), 2)


def fake(**fields: Any) -> dict[str, Any]:
    return {"type": "fake", **fields}


class GivesUp(FakeEngine):
    """Raises a `TimeoutError` of its own."""

    def __init__(self) -> None:
        super().__init__(FakeEngineConfig(), ModelConfig(name="fake"))

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        raise TimeoutError("a socket of its own")

    async def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncGenerator[TextDelta]:
        yield TextDelta("a", num_tokens=1)
        raise TimeoutError("a socket of its own")


async def test_an_engine_that_gives_up_by_its_own_clock_has_met_no_deadline() -> None:
    engine, until = GivesUp(), asyncio.get_running_loop().time() + 60
    with pytest.raises(EngineUnavailableError, match="a socket of its own"):
        await draw_all(engine, WORK)
    with pytest.raises(EngineUnavailableError, match="a socket of its own"):
        await draw_until(engine, WORK, 60)
    pieces = stream_until(engine, WORK, until)
    assert (await anext(pieces)).text == "a"
    with pytest.raises(EngineUnavailableError, match="a socket of its own"):
        await anext(pieces)


@pytest.mark.parametrize("within_s", [None, 60.0])
async def test_a_scorer_that_gives_up_by_its_own_clock_has_failed(within_s: float | None) -> None:
    class GivesUpScoring:
        name = identity = "gives up"

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def score(self, prompts: object, completions: object) -> list[float]:
            raise TimeoutError("a socket of its own")

    found = Completion("a", (1,), (-0.5,), "stop")
    drawn = Drawn(Generation((1,), (found, found)), (0, 1))
    selection = await select(GivesUpScoring(), PROMPT, drawn, 1, within_s=within_s)
    assert selection.degraded == SCORING_FAILED
    assert selection.error == "the scorer did not answer within its own time: a socket of its own"


async def test_a_stream_tells_the_tokens_until_its_deadline_and_frees_its_row() -> None:
    engine = FakeEngine(FakeEngineConfig(delay_s=60), ModelConfig(name="fake"))
    await engine.start()
    params = SamplingParams(max_tokens=400, logit_bias=NO_END)
    until, last = asyncio.get_running_loop().time() + 1.5, 0

    async def read_all() -> None:
        nonlocal last
        async for piece in stream_until(engine, Work("v0000", PROMPT, params, 1), until):
            last = piece.num_tokens

    with pytest.raises(DeadlineError) as late:
        await read_all()
    assert late.value.cut_tokens == last > 0
    assert len(late.value.prompt_token_ids) == await engine.count_prompt_tokens(PROMPT)
    assert f"after {last} tokens" in late.value.message
    assert engine.in_progress == 0


async def test_a_reader_that_takes_its_time_is_not_cut_by_another_ones_clock() -> None:
    engine = FakeEngine(FakeEngineConfig(), ModelConfig(name="fake"))  # takes no time
    await engine.start()
    until = asyncio.get_running_loop().time() + 0.01
    pieces = 0
    async for _ in stream_until(engine, Work("v0000", PROMPT, SamplingParams(), 1), until):
        await asyncio.sleep(0.02)
        pieces += 1
    assert pieces > 1


async def test_a_single_sample_past_its_deadline_is_a_504(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(engine=fake(delay_s=2))) as running:
        response = await running.post("/v1/distilled", bond={"deadline_ms": 300})
        assert (response.status_code, response.json()["error"]["code"]) == (
            504,
            "deadline_exceeded",
        )
        [row] = [r for r in await all_rows(running.gateway.store) if r.status == "failed"]
        assert (row.arm.value, row.candidates, row.best_of) == ("distilled", (), 1)
        assert row.cut_tokens == row.generated_tokens
        assert row.total_tokens == len(row.prompt_token_ids) + row.cut_tokens
        assert running.gateway.admission.running_rows == 0


async def test_the_deployments_deadline_holds_for_single_samples(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(engine=fake(delay_s=30), arms={"deadline_s": 0.2})) as running:
        assert (await running.post("/v1/distilled")).status_code == 504


async def test_a_streamed_sample_ends_with_an_event_at_its_deadline(
    serve: Serve, make_config: MakeConfig
) -> None:
    bias = {str(token): value for token, value in NO_END.items()}
    asked = {"max_tokens": 400, "logit_bias": bias, "bond": {"deadline_ms": 1500}}
    async with serve(make_config(engine=fake(delay_s=60))) as served:
        answer = await told(served, CHAT, model=f"{MODEL}:reference", messages=HI, **asked)
        assert answer.text() != ""  # what was drawn in time was shown in time
        assert answer.chunks[-1]["error"]["code"] == "deadline_exceeded"
        assert not answer.done
        assert served.engine.in_progress == 0
        assert served.metric("bond_log_rows_total", arm="reference", status="failed") == 1


async def test_of_several_samples_those_that_ended_are_the_answer(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(engine=fake(capacity=1, delay_s=0.4))) as running:
        body = {"n": 8, "seed": 3, "bond": {"deadline_ms": 1500}}
        response = await running.post("/v1/distilled", **body)
        answer = response.json()
        assert response.status_code == 200
        assert 1 <= len(answer["choices"]) <= 3
        assert (answer["bond"]["degraded"], answer["bond"]["strategy"]) == (DEADLINE, "single")
        assert response.headers["x-bond-n"] == "8"
        [row] = await all_rows(running.gateway.store)
        assert row.chosen == tuple(range(len(answer["choices"])))


async def test_usage_row_and_metric_agree_on_what_was_drawn(
    run: Run, make_config: MakeConfig
) -> None:
    # work on a candidate begins to count as tokens at once, and all of them after its delay
    async with run(make_config(engine=fake(capacity=2, delay_s=0.2))) as running:
        Held(running.gateway.engine, let_go=2)
        answer = (
            await running.post(
                "/v1/best-of-n",
                best_of=8,
                max_tokens=60,
                bond={"deadline_ms": 1500, "return_candidates": True},
            )
        ).json()
        usage, ended = answer["usage"], answer["bond"]["candidates"]
        assert answer["bond"]["degraded"] == DEADLINE
        assert usage["bond"]["n"] == 8
        assert usage["bond"]["ended"] == len(ended) == 2
        cut = usage["bond"]["cut_completion_tokens"]
        assert 0 < cut <= 2 * 60  # of two more that had begun; four had not
        assert usage["completion_tokens"] == sum(c["tokens"] for c in ended) + cut
        await _same_everywhere(running, answer)


async def _same_everywhere(running: Running, answer: dict[str, Any]) -> None:
    row = await running.gateway.store.completions.get(row_id(answer))
    assert row is not None
    usage = answer["usage"]
    assert row.cut_tokens == usage["bond"]["cut_completion_tokens"]
    assert row.generated_tokens == usage["completion_tokens"]
    assert row.total_tokens == usage["total_tokens"]
    stored = (await running.client.get(f"{CHAT}/{answer['id']}")).json()
    assert stored["usage"] == usage
    told = running.metric("bond_generation_tokens_total", arm="bon")
    assert told == usage["completion_tokens"]


@pytest.mark.parametrize("delay_s", [30.0, 60_000.0], ids=["after some tokens", "before any"])
async def test_a_streamed_sample_that_is_cut_off_is_paid_for_with_its_prompt(
    run: Run, make_config: MakeConfig, delay_s: float
) -> None:
    async with run(make_config(engine=fake(delay_s=delay_s))) as running:
        limiter: Any = running.gateway.gatekeeper.limiter
        limiter._clock_us = lambda: 1_000_000
        limits = KeyLimits(tokens_per_minute=10_000)
        _, secret = await make_key(running, ["infer"], limits=limits)

        async def ask(words: str, **body: Any) -> Any:
            body["messages"] = [{"role": "user", "content": words}]
            return await running.client.post("/v1/distilled", json=body, headers=bearer(secret))

        words = "word " * 300
        bias = {str(token): value for token, value in NO_END.items()}
        late = {"max_tokens": 400, "logit_bias": bias, "bond": {"deadline_ms": 1000}}
        cut = await ask(words, **late, stream=True)
        assert "deadline_exceeded" in cut.text
        assert ("choices" in cut.text) is (delay_s < 60)
        await settled(running)
        [row] = [r for r in await all_rows(running.gateway.store) if r.status == "failed"]
        engine: Any = running.gateway.engine
        engine._delay_s = 0.0
        after = await ask("hi", max_tokens=5)
        left = int(after.headers["x-ratelimit-remaining-tokens"])
        charged = 10_000 - left - after.json()["usage"]["total_tokens"]
        if delay_s < 60:
            prompt = await engine.count_prompt_tokens([Message("user", words)])
            assert len(row.prompt_token_ids) == prompt
            assert charged == row.total_tokens == prompt + row.cut_tokens
            assert row.cut_tokens > 0
        else:
            assert row.prompt_token_ids == ()  # the engine had told nothing: by the estimate
            assert charged == len(words) / 4
