"""What the gateway and the trainer rely on, of every engine."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bond_core.engines import Engine
from bond_core.errors import (
    AdapterError,
    EngineUnavailableError,
    InvalidRequestError,
    PromptTooLongError,
    UnknownVersionError,
)
from bond_core.types import Completion, Generation, Message, SamplingParams

PROMPT = [Message("system", "Be kind."), Message("user", "Where is my order?")]
PARAMS = SamplingParams(max_tokens=24)
SEEDED = replace(PARAMS, seed=7)


async def streamed(engine: Engine, version: str, params: SamplingParams) -> tuple[str, Completion]:
    """Joined text of a stream, and the completion that its last piece carries."""
    pieces = [delta async for delta in engine.stream(version, PROMPT, params)]
    assert all(piece.completion is None for piece in pieces[:-1])
    completion = pieces[-1].completion
    assert completion is not None
    return "".join(piece.text for piece in pieces), completion


async def test_info_is_complete(engine: Engine) -> None:
    assert engine.info.base_model == "tiny"
    assert len(engine.info.tokenizer_sha256) == 64
    assert len(engine.info.base_revision) == 64
    assert engine.info.max_context_tokens >= 64
    assert engine.info.adapters
    assert 0 < engine.info.logprob_noise_nats < 0.02
    assert await engine.health()


async def test_generation_has_n_completions_with_a_logprob_per_token(engine: Engine) -> None:
    generation = await engine.generate("v0000", PROMPT, PARAMS, n=5)
    assert len(generation.completions) == 5
    assert len(generation.prompt_token_ids) == await engine.count_prompt_tokens(PROMPT)
    for completion in generation.completions:
        assert 1 <= len(completion.token_ids) == len(completion.logprobs) <= 24
        assert all(logprob <= 0 for logprob in completion.logprobs)
        assert (completion.finish_reason == "length") <= (len(completion.token_ids) == 24)


async def test_candidates_differ(engine: Engine) -> None:
    generation = await engine.generate("v0000", PROMPT, PARAMS, n=64)
    assert len({completion.token_ids for completion in generation.completions}) >= 60


async def test_given_tokens_have_the_logprobs_they_were_drawn_with(engine: Engine) -> None:
    warm = replace(PARAMS, temperature=1.3)
    generation = await engine.generate("v0000", PROMPT, warm, n=6)
    tokens = [completion.token_ids for completion in generation.completions]
    found = await engine.token_logprobs("v0000", generation.prompt_token_ids, tokens, 1.3)
    for completion, logprobs in zip(generation.completions, found, strict=True):
        assert logprobs == pytest.approx(completion.logprobs, abs=1e-4)


async def test_scoring_nothing_gives_nothing(engine: Engine) -> None:
    assert await engine.token_logprobs("v0000", [5, 6], []) == []
    assert await engine.token_logprobs("v0000", [5, 6], [[], [7]]) == [
        (),
        (await engine.token_logprobs("v0000", [5, 6], [[7]]))[0],
    ]


async def test_a_seed_fixes_every_candidate(engine: Engine) -> None:
    first = await engine.generate("v0000", PROMPT, SEEDED, n=4)
    again = await engine.generate("v0000", PROMPT, SEEDED, n=2)
    other = await engine.generate("v0000", PROMPT, replace(PARAMS, seed=8), n=2)
    texts = [completion.token_ids for completion in first.completions]
    assert [completion.token_ids for completion in again.completions] == texts[:2]
    assert len(set(texts)) == 4
    assert other.completions[0].token_ids != texts[0]


async def test_a_seed_gives_the_same_among_others(engine: Engine) -> None:
    alone = await engine.generate("v0000", PROMPT, SEEDED, n=3)
    crowd = [
        engine.generate("v0000", [Message("user", "Anything else?" * i)], PARAMS, n=i)
        for i in range(1, 5)
    ]
    _, busy, *_ = await asyncio.gather(
        crowd[0], engine.generate("v0000", PROMPT, SEEDED, n=3), *crowd[1:]
    )
    for one, other in zip(alone.completions, busy.completions, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


async def test_greedy_is_one_answer(engine: Engine) -> None:
    greedy = replace(PARAMS, temperature=0.0)
    generation = await engine.generate("v0000", PROMPT, greedy, n=3)
    assert len({completion.token_ids for completion in generation.completions}) == 1
    assert generation.completions[0].logprobs == (0.0,) * len(generation.completions[0].token_ids)


async def test_top_k_1_is_greedy_and_its_law_is_a_point(engine: Engine) -> None:
    greedy = await engine.generate("v0000", PROMPT, replace(PARAMS, temperature=0.0))
    top_1 = await engine.generate("v0000", PROMPT, replace(PARAMS, top_k=1))
    assert top_1.completions[0].token_ids == greedy.completions[0].token_ids
    assert top_1.completions[0].logprob == pytest.approx(0.0, abs=1e-6)


async def test_bias_forbids_and_forces(engine: Engine) -> None:
    free = await engine.generate("v0000", PROMPT, replace(SEEDED, max_tokens=1))
    token = free.completions[0].token_ids[0]
    forbidden = replace(PARAMS, max_tokens=1, logit_bias={token: -100.0})
    forced = replace(PARAMS, max_tokens=3, logit_bias={token: 100.0})
    without = await engine.generate("v0000", PROMPT, forbidden, n=32)
    only = await engine.generate("v0000", PROMPT, forced)
    assert token not in {c.token_ids[0] for c in without.completions}
    assert set(only.completions[0].token_ids) == {token}
    assert only.completions[0].logprob == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
async def test_a_penalty_lowers_the_odds_of_a_token_that_was_drawn(
    engine: Engine, name: str
) -> None:
    """Two tokens alone have a chance; a penalty of 2 takes 2 from the log-odds of the first one
    once it has been drawn, whatever the model thinks of the second position."""
    free = await engine.generate("v0000", PROMPT, replace(SEEDED, max_tokens=1), n=32)
    one, two = list(dict.fromkeys(c.token_ids[0] for c in free.completions))[:2]
    narrow = replace(SEEDED, max_tokens=2, logit_bias={one: 100.0, two: 100.0})
    plain = await engine.generate("v0000", PROMPT, narrow, n=64)
    penalised = await engine.generate("v0000", PROMPT, replace(narrow, **{name: 2.0}), n=64)

    def odds(generation: Generation, first: int) -> float:
        """Log-odds of `first` against the other at the second position, after `first`."""
        other = two if first == one else one
        logprob = {c.token_ids[:2]: c.logprobs[-1] for c in generation.completions}
        if (first, first) in logprob:
            return logit(logprob[first, first])
        return -logit(logprob[first, other])

    for first in (one, two):
        assert odds(plain, first) - odds(penalised, first) == pytest.approx(2.0, abs=0.02)


def logit(logprob: float) -> float:
    """Log-odds of an event of this log-probability."""
    return logprob - math.log(-math.expm1(logprob))


async def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole = (await engine.generate("v0000", PROMPT, SEEDED)).completions[0]
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    cut = (await engine.generate("v0000", PROMPT, replace(SEEDED, stop=(stop,)))).completions[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    count = len(cut.token_ids)
    assert cut.token_ids == whole.token_ids[:count]
    assert count < len(whole.token_ids)


async def test_the_shortest_answer_is_one_token(engine: Engine) -> None:
    generation = await engine.generate("v0000", PROMPT, replace(PARAMS, max_tokens=1), n=3)
    assert [len(completion.token_ids) for completion in generation.completions] == [1, 1, 1]


async def test_a_stream_is_the_completion_in_pieces(engine: Engine) -> None:
    completion = (await engine.generate("v0000", PROMPT, SEEDED)).completions[0]
    text, last = await streamed(engine, "v0000", SEEDED)
    assert text == last.text == completion.text
    assert last.token_ids == completion.token_ids
    assert last.finish_reason == completion.finish_reason


async def test_the_first_piece_and_the_last_tell_the_prompts_tokens(engine: Engine) -> None:
    whole = await engine.generate("v0000", PROMPT, SEEDED)
    pieces = [delta async for delta in engine.stream("v0000", PROMPT, SEEDED)]
    assert len(pieces) > 2
    for piece in (pieces[0], pieces[-1]):
        assert piece.prompt_token_ids == whole.prompt_token_ids
    assert not any(piece.prompt_token_ids for piece in pieces[1:-1])  # it may be long


async def test_a_stream_never_shows_a_stop_string(engine: Engine) -> None:
    whole = (await engine.generate("v0000", PROMPT, SEEDED)).completions[0]
    middle = len(whole.text) // 2
    stop = (whole.text[middle : middle + 4],)
    text, last = await streamed(engine, "v0000", replace(SEEDED, stop=stop))
    assert text == last.text == whole.text[: whole.text.index(stop[0])]


async def test_a_stream_that_is_closed_leaves_the_engine_usable(engine: Engine) -> None:
    stream = engine.stream("v0000", PROMPT, PARAMS)
    assert (await anext(aiter(stream))).completion is None
    await stream.aclose()  # type: ignore[attr-defined]
    generation = await engine.generate("v0000", PROMPT, PARAMS, n=64)
    assert len(generation.completions) == 64


async def test_an_adapter_is_another_policy(engine: Engine, adapter_path: Path) -> None:
    await engine.load_adapter("v0001", adapter_path)
    assert await engine.loaded_versions() == ["v0000", "v0001"]
    one = await engine.generate("v0000", PROMPT, SEEDED)
    other = await engine.generate("v0001", PROMPT, SEEDED)
    assert one.prompt_token_ids == other.prompt_token_ids
    tokens = [one.completions[0].token_ids]
    base = await engine.token_logprobs("v0000", one.prompt_token_ids, tokens)
    adapted = await engine.token_logprobs("v0001", one.prompt_token_ids, tokens)
    assert abs(sum(base[0]) - sum(adapted[0])) > 10 * engine.info.logprob_noise_nats
    assert base[0] == pytest.approx(one.completions[0].logprobs, abs=1e-4)


async def test_versions_run_side_by_side(
    engine: Engine, adapter_path: Path, other_adapter_path: Path
) -> None:
    await engine.load_adapter("v0001", adapter_path)
    await engine.load_adapter("v0002", other_adapter_path)
    versions = ["v0000", "v0001", "v0002"]
    apart = [await engine.generate(version, PROMPT, SEEDED, n=2) for version in versions]
    together = await asyncio.gather(
        *(engine.generate(version, PROMPT, SEEDED, n=2) for version in versions)
    )
    for one, other in zip(apart, together, strict=True):
        assert [c.token_ids for c in one.completions] == [c.token_ids for c in other.completions]
    assert len({generation.completions[0].token_ids for generation in together}) == 3


async def test_a_name_is_loaded_once_and_dropped_once(engine: Engine, adapter_path: Path) -> None:
    await engine.load_adapter("v0001", adapter_path)
    with pytest.raises(AdapterError, match="v0001"):
        await engine.load_adapter("v0001", adapter_path)
    await engine.drop_adapter("v0001")
    assert await engine.loaded_versions() == ["v0000"]
    with pytest.raises(UnknownVersionError, match="v0001"):
        await engine.drop_adapter("v0001")
    with pytest.raises(AdapterError, match="v0000"):
        await engine.drop_adapter("v0000")


async def test_a_directory_that_is_no_adapter_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="adapter_config"):
        await engine.load_adapter("v0001", tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterError, match="adapter_model"):
        await engine.load_adapter("v0001", tmp_path)
    assert await engine.loaded_versions() == ["v0000"]


async def test_an_unknown_version_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownVersionError, match="v0009"):
        await engine.generate("v0009", PROMPT, PARAMS)
    with pytest.raises(UnknownVersionError, match="v0009"):
        await engine.token_logprobs("v0009", [1, 2], [[3]])
    with pytest.raises(UnknownVersionError, match="v0009"):
        await anext(aiter(engine.stream("v0009", PROMPT, PARAMS)))


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (replace(PARAMS, temperature=-1.0), "temperature"),
        (replace(PARAMS, temperature=float("nan")), "temperature"),
        (replace(PARAMS, temperature=1e-40), "temperature"),
        (replace(PARAMS, top_p=0.0), "top_p"),
        (replace(PARAMS, top_p=1.5), "top_p"),
        (replace(PARAMS, top_k=-1), "top_k"),
        (replace(PARAMS, max_tokens=0), "max_tokens"),
        (replace(PARAMS, presence_penalty=float("inf")), "presence_penalty"),
        (replace(PARAMS, frequency_penalty=2.5), "frequency_penalty"),
        (replace(PARAMS, temperature=0.001), "temperature"),
        (replace(PARAMS, logit_bias={10**9: 1.0}), "logit_bias"),
        (replace(PARAMS, logit_bias={1: float("nan")}), "logit_bias"),
        (replace(PARAMS, stop=("",)), "stop"),
    ],
)
async def test_values_out_of_range_are_named(
    engine: Engine, params: SamplingParams, param: str
) -> None:
    with pytest.raises(InvalidRequestError, match=param) as caught:
        await engine.generate("v0000", PROMPT, params)
    assert caught.value.param == param


async def test_the_law_at_the_least_temperature_is_finite(engine: Engine) -> None:
    cold = await engine.generate("v0000", PROMPT, replace(PARAMS, temperature=0.01), n=4)
    for completion in cold.completions:
        assert all(-100 < logprob <= 1e-6 for logprob in completion.logprobs)


async def test_scoring_at_a_temperature_too_small_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.token_logprobs("v0000", [5], [[7]], 1e-40)
    assert caught.value.param == "temperature"


async def test_a_top_k_beyond_every_integer_type_keeps_everything(engine: Engine) -> None:
    whole = await engine.generate("v0000", PROMPT, SEEDED)
    huge = await engine.generate("v0000", PROMPT, replace(SEEDED, top_k=2**70))
    assert huge.completions[0].token_ids == whole.completions[0].token_ids


async def test_n_must_be_positive(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.generate("v0000", PROMPT, PARAMS, n=0)
    assert caught.value.param == "n"


async def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(engine: Engine) -> None:
    limit = engine.info.max_context_tokens
    prompt = [Message("user", "z" * limit)]
    count = await engine.count_prompt_tokens(prompt)
    with pytest.raises(PromptTooLongError) as caught:
        await engine.generate("v0000", prompt, PARAMS)
    assert str(count) in str(caught.value)
    assert str(limit) in str(caught.value)


async def test_an_answer_is_cut_where_the_context_ends(engine: Engine) -> None:
    limit = engine.info.max_context_tokens
    overhead = await engine.count_prompt_tokens([Message("user", "")])
    prompt = [Message("user", "z" * (limit - overhead - 2))]
    assert await engine.count_prompt_tokens(prompt) == limit - 2
    generation = await engine.generate("v0000", prompt, PARAMS, n=8)
    assert {len(c.token_ids) for c in generation.completions if c.finish_reason == "length"} == {2}


async def test_no_messages_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.generate("v0000", [], PARAMS)
    assert caught.value.param == "messages"


async def test_a_closed_engine_says_so(engine: Engine) -> None:
    await engine.close()
    assert not await engine.health()
    with pytest.raises(EngineUnavailableError):
        await engine.generate("v0000", PROMPT, PARAMS)
