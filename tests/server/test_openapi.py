"""The OpenAPI document is the committed one, and the gateway does what it says."""

import asyncio
import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from running_gateway import MODEL, MakeConfig
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from served_gateway import HI, Serve, told

from bond_server.app import create_app
from bond_server.openapi import text_of
from bond_server.schemas.chunks import ChatCompletionChunk, TextCompletionChunk

FILE = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text())
OPERATIONS = [
    (method.upper(), path, mode)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or "requestBody" in operation
]
ANSWERING = [
    path
    for path, methods in DOCUMENT["paths"].items()
    if "answers" in methods.get("post", {}).get("tags", ())
]
MODELS = [MODEL, *(f"{MODEL}:{arm}" for arm in ("reference", "bon", "distilled"))]
MAKE = "python -m bond_server.openapi > docs/openapi.json"

WITHOUT = [
    # rules between fields (stream_options needs stream) make some bodies of the schema wrong
    positive_data_acceptance,
    # keys are optional: this gateway has none
    ignored_auth,
]


def test_the_committed_document_is_current(make_config: MakeConfig) -> None:
    assert FILE.read_text() == text_of(create_app(make_config()).openapi()), f"run: {MAKE}"


def answerable(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a deployment: its model ids, and no fields that it does not know."""
    narrowed = copy.deepcopy(document)
    for name, schema in narrowed["components"]["schemas"].items():
        if name.endswith("Request"):
            schema["additionalProperties"] = False
            schema["properties"]["model"] = {"enum": MODELS}
            schema["properties"]["n"] = {"enum": [1, 2]}
            for field in ("best_of", "stream_options", "top_logprobs", "max_completion_tokens"):
                schema["properties"].pop(field, None)  # each depends on another
            limit = {"type": "integer", "minimum": 1, "maximum": 8}
            schema["properties"] |= {"temperature": {"enum": [0.5, 1, None]}, "max_tokens": limit}
            schema["properties"]["logit_bias"] = {"enum": [None, {"257": 1}]}
            if "arms" in schema["properties"]:
                schema["properties"]["arms"] = {"enum": [["bon"], ["reference", "distilled@v0"]]}
                schema["properties"]["model"] = {"enum": [MODEL]}
    schema = narrowed["components"]["schemas"]["ChatMessage"]
    schema["properties"] = {"role": {"enum": ["user"]}, "content": {"type": "string"}}
    schema["required"] = ["role", "content"]
    return narrowed


def answers_of(
    document: dict[str, Any], url: str, method: str, path: str, mode: GenerationMode, examples: int
) -> Counter[int]:
    """Statuses of requests that are made from the document, each answer checked against it."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    operation = schema[path][method]
    seen: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        response = case.call_and_validate(excluded_checks=WITHOUT)
        seen[response.status_code] += 1

    check()
    return seen


async def test_no_request_gets_what_is_not_documented(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:
        for method, path, mode in OPERATIONS:
            seen = await asyncio.to_thread(answers_of, DOCUMENT, served.url, method, path, mode, 10)
            assert seen.total() > 0
            assert not [status for status in seen if status >= 500]


async def test_requests_that_can_be_answered_get_the_documented_answer(
    serve: Serve, make_config: MakeConfig
) -> None:
    assert len(ANSWERING) == 5
    document = answerable(DOCUMENT)
    async with serve(make_config()) as served:
        for path in ANSWERING:
            seen = await asyncio.to_thread(
                answers_of, document, served.url, "POST", path, GenerationMode.POSITIVE, 25
            )
            assert seen[200] >= 5, (path, seen)
            assert not [status for status in seen if status >= 500]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"best_of": 3}])
async def test_every_chunk_has_the_documented_form(
    fields: dict[str, Any], serve: Serve, make_config: MakeConfig
) -> None:
    tool = {"type": "function", "function": {"name": "find"}}
    common = {"model": MODELS[1], "stream_options": {"include_usage": True}, **fields}
    async with serve(make_config()) as served:
        for extra in (
            {"logprobs": True, "top_logprobs": 2},
            {"tools": [tool], "tool_choice": tool, "bond": {"return_candidates": True}},
        ):
            answer = await told(
                served, "/v1/chat/completions", messages=HI, **common, **cast(Any, extra)
            )
            assert len(answer.chunks) >= 4  # who speaks, what, why it ended, the usage
            for chunk in answer.chunks:
                ChatCompletionChunk.model_validate(chunk, strict=True)
        answer = await told(served, "/v1/completions", prompt="a", logprobs=2, **common)
        assert len(answer.chunks) >= 3
        for chunk in answer.chunks:
            TextCompletionChunk.model_validate(chunk, strict=True)


def test_streams_are_described() -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/best-of-n", "/v1/distilled"):
        content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}
    compare = DOCUMENT["paths"]["/v1/compare"]["post"]["responses"]["200"]["content"]
    assert set(compare) == {"application/json"}


def test_engines_own_fields_are_allowed_and_no_others_inside() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["additionalProperties"] is True
    assert schemas["BondOptions"]["additionalProperties"] is False


async def test_a_stream_that_is_not_as_documented_would_be_noticed(
    serve: Serve, make_config: MakeConfig
) -> None:
    document = answerable(DOCUMENT)
    document["components"]["schemas"]["Delta"]["required"] = ["mood"]
    path = "/v1/distilled"
    async with serve(make_config()) as served:
        with pytest.raises(FailureGroup, match="SSE event"):
            await asyncio.to_thread(
                answers_of, document, served.url, "POST", path, GenerationMode.POSITIVE, 25
            )
