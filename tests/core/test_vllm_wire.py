"""What is sent to vLLM, and what is made of every answer that it may give."""

import json
import math
from typing import Any

import pytest

from bond_core.engines.base import Partial
from bond_core.engines.vllm import answers, wire
from bond_core.engines.vllm.releases import release_of, why_unsafe
from bond_core.errors import EngineUnavailableError
from bond_core.types import Message, SamplingParams, TextDelta

PROMPT = [Message("system", "Be kind."), Message("user", "Hi")]
PARAMS = SamplingParams(max_tokens=9, temperature=0.8, top_p=0.9, top_k=7, stop=("x",))

GENERATION_SETTINGS = {
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "stop", "stop_token_ids",
    "ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "add_generation_prompt", "n",
}  # fmt: skip
"""Everything that decides an answer, and that a folder's generation_config.json could decide."""


def choice(index: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"content": "ab"},
        "token_ids": [5, 6],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.5}]},
        "finish_reason": "stop",
        **changes,
    }


def test_every_setting_is_sent_even_at_its_default() -> None:
    _, body = wire.request("m", PROMPT, SamplingParams(), 3, priority=0)
    assert set(body) >= GENERATION_SETTINGS
    assert "seed" not in body
    assert "priority" not in body
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    assert (body["n"], body["temperature"], body["repetition_penalty"], body["min_p"]) == (
        3, 1.0, 1.0, 0.0,
    )  # fmt: skip
    assert body["top_k"] == -1


def test_every_parameter_reaches_the_body() -> None:
    params = SamplingParams(
        max_tokens=5, temperature=0.5, top_p=0.4, top_k=3, presence_penalty=0.1,
        frequency_penalty=0.2, logit_bias={7: -1.5}, stop=("a", "b"), seed=11,
    )  # fmt: skip
    _, body = wire.request("m", PROMPT, params, 2, priority=4)
    expected = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.4, "top_k": 3, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "logit_bias": {"7": -1.5}, "stop": ["a", "b"], "priority": 4,
    }  # fmt: skip
    assert {key: body[key] for key in expected} == expected
    assert body["seed"] == wire.stream_seed(11)


def test_neighbouring_seeds_share_no_candidates() -> None:
    """vLLM draws candidate i from the stream of seed + i."""
    streams = [wire.stream_seed(seed) + i for seed in range(200) for i in range(64)]
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**63 for stream in streams)


def test_greedy_is_asked_for_once_and_its_law_is_a_point() -> None:
    greedy = SamplingParams(temperature=0.0)
    assert wire.request("m", PROMPT, greedy, 4, priority=0)[1]["n"] == 1
    answer = {"choices": [choice()], "prompt_token_ids": [1]}
    found = answers.generation(answer, greedy, 4).completions
    assert [c.logprobs for c in found] == [(0.0, 0.0)] * 4


def test_completions_come_in_the_order_of_their_index() -> None:
    answer = {
        "choices": [choice(1, token_ids=[8, 9]), choice(0, finish_reason="length")],
        "prompt_token_ids": [1, 2],
    }
    found = answers.generation(answer, PARAMS, 2)
    assert found.prompt_token_ids == (1, 2)
    assert [c.token_ids for c in found.completions] == [(5, 6), (8, 9)]
    assert [c.finish_reason for c in found.completions] == ["length", "stop"]
    assert found.completions[0].logprob == -2.0


@pytest.mark.parametrize(
    "answer",
    [
        "a page of HTML",
        {},
        {"choices": [choice()]},
        {"choices": [choice(token_ids=None)], "prompt_token_ids": [1]},
        {"choices": [choice(token_ids=[5])], "prompt_token_ids": [1]},
        {"choices": [choice(token_ids=[], logprobs={"content": []})], "prompt_token_ids": [1]},
        {"choices": [choice(logprobs=None)], "prompt_token_ids": [1]},
        {"choices": [choice(finish_reason="abort")], "prompt_token_ids": [1]},
        {
            "choices": [choice(logprobs={"content": [{"logprob": math.nan}, {"logprob": -1}]})],
            "prompt_token_ids": [1],
        },
        {"choices": [choice(), choice(1)], "prompt_token_ids": [1]},
        {"choices": [], "prompt_token_ids": [1]},
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_an_error(answer: Any) -> None:
    with pytest.raises(EngineUnavailableError, match="vLLM"):
        answers.generation(answer, PARAMS, 1)


def chunk(**changes: Any) -> str:
    one = {
        "index": 0,
        "delta": {"content": "a"},
        "token_ids": [5],
        "logprobs": {"content": [{"logprob": -0.5}]},
        "finish_reason": None,
        **changes,
    }
    return json.dumps({"choices": [one], "prompt_token_ids": None})


def test_a_stream_is_put_together() -> None:
    answer = answers.StreamedAnswer(PARAMS)
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    assert answer.push(json.dumps(first | {"prompt_token_ids": [3, 4]})) is None
    assert answer.push(chunk()) == TextDelta("a", None, (3, 4), num_tokens=1)
    assert not answer.finished
    last = chunk(delta={"content": "b"}, finish_reason="stop", token_ids=[6])
    assert answer.push(last) == TextDelta("b", num_tokens=2)
    assert answer.finished
    completion = answer.completion()
    assert (completion.text, completion.token_ids, completion.logprob) == ("ab", (5, 6), -1.0)
    assert answer.prompt_token_ids == (3, 4)


def test_a_stream_that_breaks_off_has_no_completion() -> None:
    answer = answers.StreamedAnswer(PARAMS)
    answer.push(chunk())
    with pytest.raises(EngineUnavailableError, match="broke off"):
        answer.completion()


@pytest.mark.parametrize(
    "data", ["nonsense", "[]", "{}", chunk(delta=None), chunk(token_ids=["x"])]
)
def test_a_chunk_that_is_none_is_an_error(data: str) -> None:
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        answers.StreamedAnswer(PARAMS).push(data)


def test_an_error_inside_a_stream_is_told() -> None:
    with pytest.raises(EngineUnavailableError, match="out of memory"):
        answers.StreamedAnswer(PARAMS).push('{"error": {"message": "out of memory"}}')


def entry(token: int, logprobs: dict[int, float]) -> dict[str, Any]:
    assert token in logprobs
    return {str(key): {"logprob": value} for key, value in logprobs.items()}


def test_given_tokens_at_temperature_1_are_read_as_they_are() -> None:
    answer = {
        "choices": [
            {"index": 1, "prompt_logprobs": [None, entry(8, {8: -2.0}), entry(9, {9: -3.0})]},
            {"index": 0, "prompt_logprobs": [None, entry(6, {6: -1.0})]},
        ]
    }
    found = wire.token_logprobs(answer, [[5, 6], [5, 8, 9]], 1, 1.0)
    assert found == [(-1.0,), (-2.0, -3.0)]


def test_another_temperature_renormalises_the_whole_vocabulary() -> None:
    logits = [0.3, -1.0, 2.0]
    at_1 = [x - math.log(sum(map(math.exp, logits))) for x in logits]
    halved = [x / 0.5 for x in logits]
    expected = halved[2] - math.log(sum(map(math.exp, halved)))
    answer = {
        "choices": [
            {"index": 0, "prompt_logprobs": [None, entry(2, dict(enumerate(at_1)))]},
        ]
    }
    [[found]] = wire.token_logprobs(answer, [[1, 2]], 1, 0.5)
    assert found == pytest.approx(expected, abs=1e-12)
    assert wire.scoring_body("m", [[1, 2]], 0.5, priority=0)["prompt_logprobs"] == -1
    assert wire.scoring_body("m", [[1, 2]], 1.0, priority=0)["prompt_logprobs"] == 0


@pytest.mark.parametrize(
    "entries",
    [None, [None], [None, None], [None, {"7": {"logprob": -1}}], [None, {"6": {"logprob": "-"}}]],
)
def test_scores_that_are_missing_are_an_error(entries: Any) -> None:
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        wire.token_logprobs({"choices": [{"index": 0, "prompt_logprobs": entries}]}, [[5, 6]], 1, 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no", "param": "seed"}}, "no"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"object": "error", "message": "old form"}, "old form"),
        ("plain text", ""),
        (None, ""),
    ],
)
def test_error_bodies_of_every_form_are_read(body: Any, message: str) -> None:
    assert wire.error_message(body) == message
    assert wire.error_param(body) == ("seed" if message == "no" else None)


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("0.32.0", True), ("0.32.1.dev3+g1234", True), ("1.0", True), ("0.31.9", False),
        ("0.24.0", False), ("0.9.2", False), ("dev", True), ("0.0.0.dev0", True),
    ],
)  # fmt: skip
def test_older_releases_are_told_why_they_may_not_swap(version: str, safe: bool) -> None:
    assert (why_unsafe(version) == "") is safe
    if not safe:
        assert version in why_unsafe(version)
        assert "47724" in why_unsafe(version)


def test_a_server_that_hides_its_release_may_not_swap() -> None:
    assert "/version" in why_unsafe("")


def test_releases_compare_as_numbers() -> None:
    assert release_of("0.9.2") < release_of("0.24.0") < release_of("0.32.0.post1")


def test_an_answer_cut_for_repeating_itself_is_cut() -> None:
    """vLLM's own reason, which the field `repetition_detection` brings."""
    answer = {"choices": [choice(finish_reason="repetition")], "prompt_token_ids": [1]}
    [found] = answers.generation(answer, PARAMS, 1).completions
    assert found.finish_reason == "length"


@pytest.mark.parametrize(
    "sent",
    [
        [chunk(finish_reason="stop")],  # nobody has told the prompt's tokens
        [
            json.dumps({"choices": [], "prompt_token_ids": [1]}),
            chunk(delta={"tool_calls": [{"index": 0, "function": "f"}]}, finish_reason="stop"),
        ],
        [
            json.dumps({"choices": [], "prompt_token_ids": [1]}),
            chunk(delta={"content": "\ud83d"}, finish_reason="stop"),
        ],
    ],
)
def test_a_stream_of_garbage_is_the_engines_fault(sent: list[str]) -> None:
    alone, together = answers.StreamedAnswer(PARAMS), answers.StreamedChoices(PARAMS, 1, Partial())

    def read_alone() -> None:
        for data in sent:
            alone.push(data)
        alone.completion()

    def read_together() -> None:
        for data in sent:
            together.push(data)
        together.generation()

    for read in (read_alone, read_together):
        with pytest.raises(EngineUnavailableError, match="cannot be read"):
            read()


def test_one_choice_told_twice_is_not_two_draws() -> None:
    with pytest.raises(EngineUnavailableError, match="indices"):
        answers.generation({"choices": [choice(), choice()], "prompt_token_ids": [1]}, PARAMS, 2)


@pytest.mark.parametrize("index", [-1, 2, 7])
def test_a_choice_that_nobody_asked_for_is_no_candidate(index: int) -> None:
    partial = Partial()
    together = answers.StreamedChoices(PARAMS, 2, partial)
    together.push(json.dumps({"choices": [], "prompt_token_ids": [1]}))
    together.push(chunk(index=0, finish_reason="stop"))
    with pytest.raises(EngineUnavailableError, match=f"the index {index}"):
        together.push(chunk(index=index, finish_reason="stop"))
    assert list(partial.completions) == [0]


HALF = "\ud83d"
"""Half a surrogate pair, which JSON can say and UTF-8 cannot."""


def call(**function: str) -> dict[str, Any]:
    return {"content": None, "tool_calls": [{"index": 0, "id": "c", "function": function}]}


def entries(**changes: Any) -> dict[str, Any]:
    one = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.0}]}
    return {"content": [{**one, **changes}]}


UNTELLABLE: dict[str, dict[str, Any]] = {
    "a negative id": {"token_ids": [-1]},
    "an id of 33 bits": {"token_ids": [2**32]},
    "an id of 65 bits": {"token_ids": [2**64]},
    "an id that is none": {"token_ids": [5.5]},
    "half a pair in the text": {"said": {"content": HALF}},
    "half a pair in a tool's name": {"said": call(name=HALF, arguments="{}")},
    "half a pair in arguments": {"said": call(name="f", arguments=HALF)},
    "a call that is words": {"said": {"tool_calls": ["words"]}},
    "calls that are an object": {"said": {"tool_calls": {"a": 1}}},
    "a call whose index is words": {"said": {"tool_calls": [{"index": "first"}]}},
    "half a pair in a token": {"logprobs": entries(token=HALF)},
    "half a pair in an alternative": {
        "logprobs": entries(top_logprobs=[{"token": HALF, "logprob": -1.0}])
    },
    "an infinite alternative": {
        "logprobs": entries(top_logprobs=[{"token": "b", "logprob": -math.inf}])
    },
    "a number that is none": {"logprobs": entries(logprob=math.nan)},
    "a reason that is a list": {"finish_reason": ["stop"]},
    "another choice": {"index": 1},
}
"""What no row can keep, or no client be told."""
TELLING = SamplingParams(max_tokens=9, top_logprobs=1)


def garbage(case: str, turn: str, **more: Any) -> dict[str, Any]:
    changes = dict(UNTELLABLE[case])
    said = changes.pop("said", {"content": "a"})
    whole = {"token_ids": [5], "logprobs": entries(), "finish_reason": "stop", **changes}
    return {"prompt_token_ids": [1], "choices": [{"index": 0, turn: said, **whole}], **more}


@pytest.mark.parametrize("case", UNTELLABLE)
def test_what_cannot_be_kept_or_told_is_the_engines_fault(case: str) -> None:
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        answers.generation(garbage(case, "message"), TELLING, 1)
    answer, told = answers.StreamedAnswer(TELLING), []
    with pytest.raises(EngineUnavailableError, match="cannot be read"):  # noqa: PT012
        told.append(answer.push(json.dumps(garbage(case, "delta"))))
        answer.completion()
    assert not told or case == "a reason that is a list"  # nothing of it has gone out


@pytest.mark.parametrize("prompt", [[-1], [2**32], ["words"]])
def test_a_prompt_of_ids_that_are_none_is_the_engines_fault(prompt: list[Any]) -> None:
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        answers.generation({"choices": [choice()], "prompt_token_ids": prompt}, PARAMS, 1)
    data = json.dumps({"choices": [], "prompt_token_ids": prompt})
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        answers.StreamedAnswer(PARAMS).push(data)
    with pytest.raises(EngineUnavailableError, match="cannot be read"):
        answers.StreamedChoices(PARAMS, 1, Partial()).push(data)


def test_the_largest_id_and_the_least_logprob_of_vllm_are_read() -> None:
    last = {"token": "b", "logprob": -9999.0}
    one = choice(token_ids=[2**32 - 1], logprobs=entries(top_logprobs=[last]))
    answer = {"choices": [one], "prompt_token_ids": [0, 2**32 - 1]}
    found = answers.generation(answer, TELLING, 1)
    assert found.prompt_token_ids == (0, 2**32 - 1)
    assert found.completions[0].token_ids == (2**32 - 1,)
    assert found.completions[0].details[0].top[0].logprob == -9999.0


def test_two_choices_in_one_chunk_are_not_one_answer() -> None:
    both = [json.loads(chunk(index=i))["choices"][0] for i in (0, 1)]
    with pytest.raises(EngineUnavailableError, match="another one"):
        answers.StreamedAnswer(PARAMS).push(json.dumps({"choices": both}))
