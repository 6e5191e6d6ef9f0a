"""What the gateway's dialect needs of every engine: details, raw text, parts, fields of its own."""

import asyncio
import math
from dataclasses import replace

import pytest

from bond_core.engines import Engine
from bond_core.engines.base import Partial
from bond_core.errors import InvalidRequestError
from bond_core.types import Completion, Message, SamplingParams, TokenDetail

PROMPT = [Message("user", "Where is my order?")]
RAW = [Message("prompt", "Once upon a time")]
TOLD = SamplingParams(max_tokens=12, seed=3, top_logprobs=4)


def check_details(details: tuple[TokenDetail, ...], logprobs: tuple[float, ...]) -> None:
    assert len(details) == len(logprobs)
    for detail, logprob in zip(details, logprobs, strict=True):
        assert detail.logprob == pytest.approx(logprob, abs=1e-4)
        tops = [other.logprob for other in detail.top]
        assert 2 <= len(tops) <= 4  # parts of characters may have one name between them
        assert tops == sorted(tops, reverse=True)
        assert sum(math.exp(value) for value in tops) <= 1 + 1e-4
        assert detail.logprob <= tops[0] + 1e-4
        if detail.logprob > tops[-1] + 1e-3:
            assert detail.token in {other.token for other in detail.top}


async def test_details_are_of_the_tokens_and_their_law(engine: Engine) -> None:
    for params in (TOLD, replace(TOLD, temperature=1.5)):
        generation = await engine.generate("v0000", PROMPT, params, n=3)
        for completion in generation.completions:
            check_details(completion.details, completion.logprobs)


async def test_no_details_without_asking(engine: Engine) -> None:
    params = replace(TOLD, top_logprobs=None)
    [plain] = (await engine.generate("v0000", PROMPT, params)).completions
    [told] = (await engine.generate("v0000", PROMPT, TOLD)).completions
    assert plain.details == ()
    assert plain.token_ids == told.token_ids
    [none] = (await engine.generate("v0000", PROMPT, replace(TOLD, top_logprobs=0))).completions
    assert len(none.details) == len(none.token_ids)


async def test_greedy_details_are_the_models_own(engine: Engine) -> None:
    params = replace(TOLD, temperature=0.0)
    generation = await engine.generate("v0000", PROMPT, params)
    [completion] = generation.completions
    assert set(completion.logprobs) == {0.0}
    [found] = await engine.token_logprobs(
        "v0000", generation.prompt_token_ids, [completion.token_ids]
    )
    check_details(completion.details, found)


@pytest.mark.parametrize("prompt", [PROMPT, RAW])
async def test_a_streams_details_are_the_completions(engine: Engine, prompt: list[Message]) -> None:
    pieces = [piece async for piece in engine.stream("v0000", prompt, TOLD)]
    completion = pieces[-1].completion
    assert completion is not None
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [d for piece in pieces for d in piece.details] == list(completion.details)
    check_details(completion.details, completion.logprobs)


async def test_raw_text_is_continued_without_the_template(engine: Engine) -> None:
    params = replace(TOLD, temperature=1.2)
    generation = await engine.generate("v0000", RAW, params, n=4)
    assert len(generation.prompt_token_ids) == await engine.count_prompt_tokens(RAW)
    as_turn = [Message("user", RAW[0].content)]
    assert len(generation.prompt_token_ids) < await engine.count_prompt_tokens(as_turn)
    tokens = [completion.token_ids for completion in generation.completions]
    found = await engine.token_logprobs("v0000", generation.prompt_token_ids, tokens, 1.2)
    for completion, logprobs in zip(generation.completions, found, strict=True):
        assert logprobs == pytest.approx(completion.logprobs, abs=1e-4)
        check_details(completion.details, completion.logprobs)
    streamed = [piece async for piece in engine.stream("v0000", RAW, params)][-1]
    assert streamed.completion is not None
    assert streamed.completion.token_ids == tokens[0]
    assert streamed.prompt_token_ids == generation.prompt_token_ids


async def test_a_whole_draw_fills_its_parts(engine: Engine) -> None:
    partial = Partial()
    params = SamplingParams(max_tokens=24, seed=11)
    generation = await engine.generate("v0000", PROMPT, params, 5, partial)
    alone = await engine.generate("v0000", PROMPT, params, 5)
    assert [c.token_ids for c in generation.completions] == [c.token_ids for c in alone.completions]
    if partial.completions:  # an engine that takes no time has nothing to give up
        assert partial.prompt_token_ids == generation.prompt_token_ids
        assert [partial.completions[i] for i in range(5)] == list(generation.completions)


async def test_a_draw_that_is_given_up_leaves_what_has_ended(engine: Engine) -> None:
    partial = Partial()
    drawing = asyncio.create_task(
        engine.generate("v0000", PROMPT, SamplingParams(max_tokens=160), 48, partial)
    )
    for _ in range(10_000):
        if partial.completions or drawing.done():
            break
        await asyncio.sleep(0.002)
    drawing.cancel()
    await asyncio.wait({drawing})
    for completion in partial.completions.values():
        assert isinstance(completion, Completion)
        assert len(completion.token_ids) == len(completion.logprobs) > 0
    assert len((await engine.generate("v0000", PROMPT, TOLD, 2)).completions) == 2


async def test_what_was_drawn_in_vain_is_told(engine: Engine) -> None:
    partial, params = Partial(), SamplingParams(max_tokens=160, seed=3)
    drawing = asyncio.create_task(engine.generate("v0000", PROMPT, params, 24, partial))
    for _ in range(10_000):
        if partial.completions or drawing.done():
            break
        await asyncio.sleep(0.002)
    whole = drawing.done()
    drawing.cancel()
    await asyncio.wait({drawing})
    if whole:  # an engine that takes no time has nothing to give up
        return
    again = (await engine.generate("v0000", PROMPT, params, 24)).completions
    assert set(partial.unfinished) == set(range(24)) - set(partial.completions)
    for index, drawn in partial.unfinished.items():
        assert 0 < drawn <= len(again[index].token_ids)
    assert partial.cut_tokens == sum(partial.unfinished.values())


async def test_pieces_count_the_tokens_until_then(engine: Engine) -> None:
    params = SamplingParams(max_tokens=24, seed=11)
    pieces = [piece async for piece in engine.stream("v0000", PROMPT, params)]
    counts = [piece.num_tokens for piece in pieces]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert pieces[-1].completion is not None
    assert counts[-1] == len(pieces[-1].completion.token_ids)


async def test_fields_of_another_engine_are_refused_by_name(engine: Engine) -> None:
    params = replace(TOLD, further={"beam_width": 3})
    with pytest.raises(InvalidRequestError) as refused:
        await engine.generate("v0000", PROMPT, params)
    assert refused.value.param == "beam_width"


async def test_fields_of_its_own_change_the_answer(engine: Engine) -> None:
    if "min_p" not in engine.info.fields:
        pytest.skip("it has no fields of its own")
    plain = await engine.generate("v0000", PROMPT, replace(TOLD, temperature=1.9), n=6)
    params = replace(TOLD, temperature=1.9, further={"min_p": 0.9, "repetition_penalty": 1.2})
    changed = await engine.generate("v0000", PROMPT, params, n=6)
    pairs = zip(plain.completions, changed.completions, strict=True)
    assert all(left.token_ids != right.token_ids for left, right in pairs)
