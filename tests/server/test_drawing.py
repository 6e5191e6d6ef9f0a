"""Candidates that end before a deadline keep their places among those that were asked for."""

import asyncio

import pytest
from running_gateway import MODEL, MakeConfig, Run

from bond_core.config import FakeEngineConfig, ModelConfig
from bond_core.engines.base import Partial
from bond_core.engines.fake import FakeEngine
from bond_core.errors import DeadlineError
from bond_core.types import Completion, Conversation, Generation, Message, SamplingParams
from bond_server.services.drawing import DEADLINE, Work, draw_until

PROMPT = (Message("user", "where is my parcel?"),)


def completion(index: int) -> Completion:
    return Completion(f"answer {index}", (index + 1,), (-0.5,), "stop")


class Uneven(FakeEngine):
    """Ends some candidates, in its own order, and never the others."""

    def __init__(self, ended: tuple[int, ...]) -> None:
        super().__init__(FakeEngineConfig(), ModelConfig(name="fake"))
        self.ended = ended
        self.cancelled = False

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        assert partial is not None
        partial.prompt_token_ids = (7, 8)
        partial.completions.update({index: completion(index) for index in self.ended})
        partial.unfinished.update({2: 3, 6: 4})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return Generation((), ())


async def test_what_has_ended_keeps_its_index() -> None:
    engine = Uneven((5, 1, 4))
    drawn = await draw_until(engine, Work("v0000", PROMPT, SamplingParams(), 8), 0.05)
    assert drawn.indices == (1, 4, 5)
    assert drawn.generation == Generation((7, 8), (completion(1), completion(4), completion(5)))
    assert (drawn.degraded, drawn.cut_tokens) == (DEADLINE, 7)
    assert engine.cancelled


async def test_nothing_that_has_ended_is_an_error() -> None:
    engine = Uneven(())
    with pytest.raises(DeadlineError, match="none of 8 candidates") as late:
        await draw_until(engine, Work("v0000", PROMPT, SamplingParams(), 8), 0.05)
    assert (late.value.prompt_token_ids, late.value.cut_tokens) == ((7, 8), 7)
    assert engine.cancelled


async def test_raw_text_is_logged_and_never_learned_from(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        body = {"model": f"{MODEL}:bon", "prompt": "Dear customer, "}
        answer = (await running.client.post("/v1/completions", json=body)).json()
        completions = running.gateway.store.completions
        row = await completions.get(answer["id"].removeprefix("cmpl-"))
        turns = await running.post("/v1/best-of-n")
        claimed = await completions.claim("trainer", 10, 60.0)
    assert row is not None
    assert row.messages == (Message("prompt", "Dear customer, "),)
    assert (row.status, row.standard_sampling) == ("ok", False)
    assert [record.id for record in claimed] == [turns.json()["id"].removeprefix("chatcmpl-")]
