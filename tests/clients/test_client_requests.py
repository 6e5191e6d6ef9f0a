"""The sans-I/O core: exactly what is sent, and what every answer becomes."""

import json

import pytest

from bond_client import (
    BondAccessError,
    BondAPIError,
    BondInvalidRequestError,
    BondNotFoundError,
    BondProtocolError,
    BondRateLimitError,
    BondUnavailableError,
    requests,
)
from bond_client.answers import parse_chat_completion, parse_comparison
from bond_client.state import parse_models, parse_policies, parse_training

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 7,
    "model": "demo:bon",
    "system_fingerprint": "f",
    "choices": [
        {"index": 0, "message": {"content": "best"}, "finish_reason": "stop"},
        {"index": 1, "message": {"content": "next"}, "finish_reason": "length"},
    ],
    "usage": {
        "prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45,
        "bond": {"n": 8, "chosen_completion_tokens": 9},
    },
    "bond": {
        "arm": "bon", "version": "v0000", "experiment": "e1", "strategy": "best_of_n", "best_of": 8,
        "score": 1.5,
        "candidates": [
            {"index": 3, "text": "best", "score": 1.5, "finish_reason": "stop", "tokens": 4}
        ],
        "timings": {"generate_ms": 20.5, "score_ms": 3, "overhead_ms": 0.5},
        "degraded": None, "note": "n",
    },
}  # fmt: skip


def test_chat_sends_a_string_as_one_user_message_and_parameters_by_name() -> None:
    call = requests.chat("Hello", "demo:bon", True, {"best_of": 4, "temperature": 0.5})
    assert (call.method, call.path) == ("POST", "/v1/chat/completions")
    assert call.body == {
        "model": "demo:bon",
        "messages": [{"role": "user", "content": "Hello"}],
        "best_of": 4,
        "temperature": 0.5,
        "bond": {"return_candidates": True},
    }


def test_the_arms_own_routes_need_no_model() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert requests.best_of_n(turns, None, False, {}) == requests.Call(
        "POST", "/v1/best-of-n", {"messages": turns}
    )
    assert requests.distilled(turns, "demo", False, {"seed": 1}) == requests.Call(
        "POST", "/v1/distilled", {"model": "demo", "messages": turns, "seed": 1}
    )


def test_compare_names_its_arms_only_if_asked() -> None:
    assert requests.compare("q", None, None, {}).body == {
        "messages": [{"role": "user", "content": "q"}]
    }
    assert requests.compare("q", None, ("bon", "distilled@v0002"), {"best_of": 2}).body == {
        "messages": [{"role": "user", "content": "q"}],
        "arms": ["bon", "distilled@v0002"],
        "best_of": 2,
    }


def test_a_completion_is_parsed_whole() -> None:
    answer = parse_chat_completion(COMPLETION)
    assert answer.text == "best"
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert (answer.usage.completion_tokens, answer.usage.chosen_completion_tokens) == (40, 9)
    assert (answer.bond.arm, answer.bond.best_of, answer.bond.score) == ("bon", 8, 1.5)
    assert answer.bond.candidates[0].tokens == 4
    assert answer.bond.timings.generate_ms == 20.5
    assert answer.bond.note == "n"
    assert answer.raw["system_fingerprint"] == "f"


def test_what_may_be_null_is_none() -> None:
    bond = {**COMPLETION["bond"], "score": None, "candidates": None, "note": None}  # type: ignore[dict-item]
    answer = parse_chat_completion({**COMPLETION, "bond": bond})
    assert answer.bond.score is None
    assert answer.bond.candidates == ()
    assert answer.bond.note is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usage": None}, "answer.usage: expected a JSON object, got nothing"),
        ({"created": "7"}, "answer.created: expected an integer, got str"),
        ({"choices": {}}, "answer.choices: expected a list, got dict"),
        ({"choices": [1]}, r"answer.choices\[0\]: expected a JSON object, got int"),
        ({"id": None}, "answer.id: expected a value, got nothing"),
    ],
)
def test_another_shape_is_an_error_that_names_the_field(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(BondProtocolError, match=message):
        parse_chat_completion(COMPLETION | change)


def test_a_comparison_keeps_the_order_of_its_arms() -> None:
    arm = {
        "arm": "bon", "id": "a", "version": "v0000", "strategy": "best_of_n", "best_of": 8,
        "text": "t", "finish_reason": "stop", "score": 1.0, "tokens": 80, "latency_ms": 31.5,
        "timings": {}, "degraded": None, "note": None,
    }  # fmt: skip
    other = arm | {"arm": "distilled", "version": "v0002", "score": None, "degraded": "why"}
    found = parse_comparison({"id": "x", "model": "demo", "arms": [arm, other]})
    assert [a.arm for a in found.arms] == ["bon", "distilled"]
    assert (found.arms[0].latency_ms, found.arms[0].tokens) == (31.5, 80)
    assert (found.arms[1].score, found.arms[1].degraded) == (None, "why")


def test_models_policies_and_training_are_parsed() -> None:
    models = parse_models({"data": [{"id": "demo:bon", "root": "demo", "parent": None}]})
    assert [(m.id, m.root) for m in models] == [("demo:bon", "demo")]
    policy = {
        "version": "v0001", "state": "active", "active": True, "loaded": True, "parent": "v0000",
        "step": 50, "created_at": 1.0, "updated_at": 2.0, "reason": "r",
        "evaluation": {"kl_nats": 0.5},
    }  # fmt: skip
    policies = parse_policies({"active": "v0001", "data": [policy]})
    assert policies.active == "v0001"
    assert policies.versions[0].evaluation["kl_nats"] == 0.5
    arm = {
        "arm": "bon", "requests": 3, "failed": 1, "score_mean": 0.25, "gold_mean": None,
        "log_ratio_mean": None, "tokens_per_answer": 100.0, "latency_p50_ms": 9.0,
        "latency_p95_ms": 12.0,
    }  # fmt: skip
    training = parse_training({"active": "v0001", "run": None, "evaluations": [], "arms": [arm]})
    assert training.run is None
    assert (training.arms[0].requests, training.arms[0].failed) == (3, 1)
    assert training.arms[0].gold_mean is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BondInvalidRequestError),
        (401, BondAccessError),
        (403, BondAccessError),
        (429, BondRateLimitError),
        (404, BondNotFoundError),
        (500, BondUnavailableError),
        (503, BondUnavailableError),
    ],
)
def test_an_error_answer_becomes_the_class_of_its_status(
    status: int, kind: type[BondAPIError]
) -> None:
    error = {"message": "no model x", "type": "t", "param": "model", "code": "c"}
    with pytest.raises(BondAPIError) as caught:
        requests.decode(status, json.dumps({"error": error}).encode())
    assert type(caught.value) is kind
    assert str(caught.value) == f"no model x (HTTP {status})"
    assert (caught.value.status, caught.value.type) == (status, "t")
    assert (caught.value.param, caught.value.code) == ("model", "c")


def test_an_error_of_something_in_between_keeps_its_text() -> None:
    with pytest.raises(BondUnavailableError, match=r"<h1>Bad gateway</h1> \(HTTP 502\)"):
        requests.decode(502, b"<h1>Bad\n gateway</h1>")
    with pytest.raises(BondUnavailableError, match=r'{"detail": "x"} \(HTTP 500\)'):
        requests.decode(500, b'{"detail": "x"}')


def test_success_that_is_not_json_is_a_protocol_error() -> None:
    with pytest.raises(BondProtocolError, match="not JSON: hello"):
        requests.decode(200, b"hello")


def test_a_gateway_that_is_not_ready_is_not_an_error() -> None:
    ready = requests.parse_health(200, b'{"status": "ready", "active": "v0003"}')
    assert (ready.ready, ready.active, ready.reason) == (True, "v0003", None)
    error = {"message": "not ready: store", "type": "t", "param": None, "code": None}
    busy = requests.parse_health(503, json.dumps({"error": error}).encode())
    assert (busy.ready, busy.active, busy.reason) == (False, None, "not ready: store")
