"""Whatever is wrong with a request is told in OpenAI's shape, and loses nothing."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from running_gateway import MODEL, MakeConfig, Run, Running

HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


async def nothing_was_drawn(running: Running) -> bool:
    return await running.gateway.store.completions.count() == 0


WRONG_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": None}, "messages", "invalid_value"),
    ({}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
    ({"messages": [{"role": "x", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
        "messages.0.tool_call_id",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        "messages.0.tool_calls",
        "invalid_value",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "tool_calls": [{**CALL, "id": 1}]}]},
        "messages.1.tool_calls.0.id",
        "invalid_value",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "content": None}]},
        "messages.1.content",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "colour": "red"}]},
        "messages.0.colour",
        "unknown_parameter",
    ),
    ({"messages": HI, "best_of": 1, "n": 2}, "best_of", "invalid_value"),
    ({"messages": HI, "best_of": 17}, "best_of", "invalid_value"),
    ({"messages": HI, "best_of": 0}, "best_of", "invalid_value"),
    ({"messages": HI, "best_of": "4"}, "best_of", "invalid_value"),
    ({"messages": HI, "best_of": True}, "best_of", "invalid_value"),
    ({"messages": HI, "n": 17}, "n", "invalid_value"),
    ({"messages": HI, "n": 1.5}, "n", "invalid_value"),
    ({"messages": HI, "temperature": 0}, "temperature", "invalid_value"),
    ({"messages": HI, "temperature": 2.5}, "temperature", "invalid_value"),
    ({"messages": HI, "temperature": "hot"}, "temperature", "invalid_value"),
    ({"messages": HI, "top_p": 0}, "top_p", "invalid_value"),
    ({"messages": HI, "top_k": -2}, "top_k", "invalid_value"),
    ({"messages": HI, "top_k": 2**63}, "top_k", "invalid_value"),
    ({"messages": HI, "temperature": 1e-40}, "temperature", "invalid_value"),
    ({"messages": HI, "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"messages": HI, "max_tokens": 10**400}, "max_tokens", "invalid_value"),
    ({"messages": HI, "max_completion_tokens": 2**31}, "max_completion_tokens", "invalid_value"),
    ({"messages": HI, "tools": [{"type": "function"}]}, "tools", "invalid_value"),
    (
        {"messages": HI, "max_tokens": 4, "max_completion_tokens": 5},
        "max_completion_tokens",
        "invalid_value",
    ),
    ({"messages": HI, "stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"messages": HI, "stop": [""]}, "stop.0", "invalid_value"),
    ({"messages": HI, "logit_bias": {"yes": 1}}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": {"7" * 5000: 1}}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": {"5": 1, "05": 2}}, "logit_bias", "invalid_value"),
    ({"messages": HI, "logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
    ({"messages": HI, "metadata": {"a": 1}}, "metadata.a", "invalid_value"),
    (
        {"messages": HI, "metadata": {str(i): "" for i in range(17)}},
        "metadata",
        "invalid_value",
    ),
    ({"messages": HI, "user": 7}, "user", "invalid_value"),
    ({"messages": HI, "store": "yes"}, "store", "invalid_value"),
    ({"messages": HI, "stream": 0}, "stream", "invalid_value"),
    ({"messages": HI, "stream_options": {}}, "stream_options", "invalid_value"),
    ({"messages": HI, "logprobs": 3}, "logprobs", "invalid_value"),
    ({"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"messages": HI, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"messages": HI, "functions": [{}]}, "functions", "unsupported_parameter"),
    ({"messages": HI, "service_tier": "flex"}, "service_tier", "unsupported_parameter"),
    ({"messages": HI, "use_beam_search": True}, "use_beam_search", "unknown_parameter"),
    ({"messages": HI, "bond": {"deadline_ms": 0}}, "bond.deadline_ms", "invalid_value"),
    ({"messages": HI, "bond": {"deadline": 9}}, "bond.deadline", "unknown_parameter"),
    ({"messages": HI, "best_off": 3}, "best_off", "unknown_parameter"),
]


async def test_a_wrong_field_is_named(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        for body, param, code in WRONG_FIELDS:
            error = error_of(await running.client.post("/v1/best-of-n", json=body), 400)
            assert (error["param"], error["code"]) == (param, code), body
            assert error["type"] == "invalid_request_error"
        assert await nothing_was_drawn(running)


NOT_JSON = [
    (b'{"messages": ', "invalid_json", "at character"),
    (b"", "invalid_body", "missing"),
    (b"[]", "invalid_body", "JSON object"),
    (b"null", "invalid_body", "JSON object"),
    (b'{"messages": "\xff"}', "invalid_body", "not UTF-8: byte 14"),
    ('{"messages": []}'.encode("utf-16"), "invalid_body", "not UTF-8"),
    ('{"messages": []}'.encode("utf-16-le"), "invalid_body", "not UTF-8"),
    ('{"messages": []}'.encode("utf-32"), "invalid_body", "not UTF-8"),
    (b'{"messages": "\0"}', "invalid_json", "control character"),
    (b"[" * 100_000, "body_too_deep", "deeper than 32 levels"),
    (b'{"seed": ' + b"7" * 5000 + b"}", "invalid_body", "thousands of digits"),
]
JSON = {"content-type": "application/json"}


async def test_a_body_that_is_not_json_is_refused(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        for content, code, says in NOT_JSON:
            response = await running.client.post(
                "/v1/chat/completions", content=content, headers=JSON
            )
            error = error_of(response, 400)
            assert (error["code"], error["param"]) == (code, None), content[:20]
            assert says in error["message"]


async def test_json_in_another_encoding_is_no_answer_on_any_route(
    run: Run, make_config: MakeConfig
) -> None:
    good = json.dumps({"model": MODEL, "messages": HI})
    async with run(make_config()) as running:
        post = running.client.post
        for encoding in ("utf-16", "utf-16-be", "utf-32-le"):
            response = await post(
                "/v1/chat/completions", content=good.encode(encoding), headers=JSON
            )
            assert "UTF-8" in error_of(response, 400)["message"]
        stored = (await post("/v1/chat/completions", content=good, headers=JSON)).json()["id"]
        metadata = '{"metadata": {"a": "b"}}'.encode("utf-16")
        path = f"/v1/chat/completions/{stored}"
        assert error_of(await post(path, content=metadata, headers=JSON), 400)["code"] == (
            "invalid_body"
        )


NO_VALUES = [
    (r'{"messages":[{"role":"user","content":"\ud800"}]}', "messages.0.content"),
    (r'{"messages":[{"role":"user","content":"a"}],"user":"\udfff"}', "user"),
    (r'{"messages":[{"role":"user","content":"a"}],"\ud800":1}', None),
    (r'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}', "temperature"),
    (r'{"messages":[{"role":"user","content":"a"}],"logit_bias":{"1":Infinity}}', "logit_bias.1"),
    (r'{"messages":[{"role":"user","content":"a"}],"min_p":NaN}', "min_p"),
    (r'{"messages":[{"role":"user","content":"a"}],"documents":["\udfff"]}', "documents"),
]


async def test_what_json_can_spell_but_is_no_value_is_refused(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        for text, param in NO_VALUES:
            response = await running.client.post("/v1/distilled", content=text, headers=JSON)
            assert error_of(response, 400)["param"] == param, text
        assert await nothing_was_drawn(running)


async def test_null_and_defaults_ask_for_nothing(run: Run, make_config: MakeConfig) -> None:
    absent = dict.fromkeys(
        ["n", "best_of", "temperature", "stop", "seed", "tools", "response_format", "logit_bias"]
    )
    async with run(make_config()) as running:
        response = await running.post("/v1/best-of-n", **absent, stream=False, logprobs=False)
    assert response.status_code == 200


async def test_values_that_ask_for_nothing_are_taken(run: Run, make_config: MakeConfig) -> None:
    nothing: dict[str, Any] = {"bond": None, "tools": [], "response_format": {"type": "text"}}
    async with run(make_config()) as running:
        response = await running.post("/v1/best-of-n", **nothing)
    assert response.status_code == 200


async def test_content_that_is_no_text_is_told_what_is(run: Run, make_config: MakeConfig) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    async with run(make_config()) as running:
        error = error_of(await running.post("/v1/distilled", messages=image), 400)
    assert "a list of {type: 'text', text: string} parts" in error["message"]


async def test_a_positive_temperature_too_small_names_zero(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        error = error_of(await running.post("/v1/distilled", temperature=1e-40), 400)
    assert error["message"].endswith("0 is greedy")


async def test_a_body_without_its_content_type_is_told_so(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        response = await running.client.post("/v1/chat/completions", content=b'{"model": "x"}')
    assert "content-type: application/json" in error_of(response, 400)["message"]


UNKNOWN_MODELS = [
    "tiny",
    "other",
    f"{MODEL}:",
    f"{MODEL}:BON",
    f"{MODEL}:bon:bon",
    f"{MODEL}:distilled@",
    f"{MODEL}:distilled@7",
    f"{MODEL}:reference@v0",
    f"x{MODEL}",
    f"{MODEL}:distilled@v\u0663",  # a digit, though not of ASCII
]


async def test_an_unknown_model_is_a_404_that_lists_what_exists(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        for model in UNKNOWN_MODELS:
            error = error_of(await running.post("/v1/chat/completions", model=model), 404)
            assert (error["param"], error["code"]) == ("model", "model_not_found"), model
            for known in ("", ":reference", ":bon", ":distilled", ":distilled@v0000"):
                assert f"{MODEL}{known}" in error["message"]
        assert await nothing_was_drawn(running)


async def test_an_unknown_version_is_a_404(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        response = await running.post("/v1/chat/completions", model=f"{MODEL}:distilled@v7")
    error = error_of(response, 404)
    assert error["code"] == "model_not_found"
    assert "v0007" in error["message"]


async def test_a_route_of_one_arm_refuses_another_arms_id(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        for route, model in (("best-of-n", "distilled"), ("distilled", "bon")):
            error = error_of(await running.post(f"/v1/{route}", model=f"{MODEL}:{model}"), 404)
            assert error["param"] == "model"
        for route, model in (("best-of-n", ":bon"), ("best-of-n", ""), ("distilled", "")):
            assert (await running.post(f"/v1/{route}", model=MODEL + model)).status_code == 200


async def test_a_prompt_that_is_too_long_is_told_so(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        long = [{"role": "user", "content": "word " * 400_000}]
        error = error_of(await running.post("/v1/distilled", messages=long), 400)
        assert await nothing_was_drawn(running)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


async def test_a_body_over_the_limit_is_a_413(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        declared = await running.client.post(
            "/v1/distilled", content=b"x" * (5 << 20), headers={"content-type": "application/json"}
        )

        async def chunks() -> AsyncGenerator[bytes]:
            for _ in range(6):
                yield b" " * (1 << 20)

        streamed = await running.client.post(
            "/v1/distilled", content=chunks(), headers={"content-type": "application/json"}
        )
    for response in (declared, streamed):
        error = error_of(response, 413)
        assert error["code"] == "body_too_large"
        assert response.headers["connection"] == "close"
        assert "x-request-id" in response.headers


async def test_routes_and_methods_that_do_not_exist(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        missing = error_of(await running.client.get("/v1/nothing"), 404)
        slash = error_of(await running.client.get("/v1/models/"), 404)
        method = await running.client.get("/v1/compare")
        query = error_of(await running.client.get("/v1/training?evaluations=many"), 400)
    assert missing["code"] == "route_not_found"
    assert slash["code"] in ("route_not_found", "model_not_found")
    assert error_of(method, 405)["code"] == "method_not_allowed"
    assert method.headers["allow"] == "POST"
    assert query["param"] == "evaluations"


WRONG_COMPARISONS: list[tuple[dict[str, Any], int, str]] = [
    ({"arms": []}, 400, "arms"),
    ({"arms": ["bon", "best"]}, 400, "arms.1"),
    ({"arms": ["bon", "distilled@v9"]}, 404, "arms.1"),
    ({"n": 2}, 400, "n"),
    ({"model": f"{MODEL}:bon"}, 404, "model"),
    ({"best_of": 99}, 400, "best_of"),
    ({"arms": ["distilled"], "best_of": 2}, 400, "best_of"),
    ({"temperature": 0}, 400, "temperature"),
]


async def test_a_comparison_is_not_kept_under_a_key(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        keyed = await running.client.post(
            "/v1/compare", json={"messages": HI}, headers={"idempotency-key": "once"}
        )
        error = error_of(keyed, 400)
        assert (error["param"], error["code"]) == ("Idempotency-Key", "invalid_value")
        assert "one row per arm" in error["message"]
        assert await nothing_was_drawn(running)


async def test_wrong_comparisons(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        for body, status, param in WRONG_COMPARISONS:
            response = await running.post("/v1/compare", **body)
            assert error_of(response, status)["param"] == param, body
        assert await nothing_was_drawn(running)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/chat/completions", "GET, POST"),
        ("/v1/chat/completions/chatcmpl-1", "DELETE, GET, POST"),
        ("/v1/session", "DELETE, GET, POST"),
        ("/v1/distilled", "POST"),
        ("/healthz", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_all_that_the_path_takes(
    run: Run, make_config: MakeConfig, path: str, allowed: str
) -> None:
    async with run(make_config()) as running:
        refused = await running.client.put(path, json={})
    assert refused.status_code == 405
    assert refused.headers["allow"] == allowed
    assert f"it takes {allowed}" in refused.json()["error"]["message"]
