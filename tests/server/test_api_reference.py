"""docs/api.md is whole: every route, field, header and error code of the code is in it."""

import re
from pathlib import Path
from typing import get_type_hints

import pytest
from header_names import headers_in_the_code
from pydantic import BaseModel
from running_gateway import MakeConfig, Run

from bond_server import errors
from bond_server.app import create_app
from bond_server.schemas.completion import BondAnswer, ComparedArm, Timings
from bond_server.schemas.openai import (
    BondOptions,
    ChatCompletionRequest,
    ComparisonRequest,
    TextCompletionRequest,
)
from bond_server.services import engine_fields

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", DOCUMENT))


def test_every_route_is_documented_and_every_documented_route_exists(
    make_config: MakeConfig,
) -> None:
    paths = create_app(make_config()).openapi()["paths"]
    routes = {
        f"{method.upper()} {path.replace(':path', '')}"
        for path, methods in paths.items()
        for method in methods
    }
    documented = {name for name in NAMED if re.match(r"(GET|POST|PUT|DELETE) /", name)}
    assert routes == documented


@pytest.mark.parametrize(
    "model",
    [
        ChatCompletionRequest,
        TextCompletionRequest,
        ComparisonRequest,
        BondOptions,
        BondAnswer,
        ComparedArm,
        Timings,
    ],
)
def test_every_field_is_documented(model: type) -> None:
    names = {re.split(r"[^\w]", name)[0] for name in NAMED} | set(re.findall(r'"(\w+)"', DOCUMENT))
    assert fields_of(model) - names == set()


def fields_of(model: type) -> set[str]:
    """Names of a model's fields, or of a typed dictionary's keys."""
    return set(model.model_fields if issubclass(model, BaseModel) else get_type_hints(model))


def test_every_error_code_is_documented_and_every_documented_code_exists() -> None:
    named = {**vars(errors), **vars(engine_fields)}
    constants = {value for name, value in named.items() if name.endswith("_CODE")}
    codes = constants | {row.code for row in errors.ERROR_TABLE} | {*errors.HTTP_CODES.values()}
    documented = set(re.findall(r"^\| \d{3} \| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert codes == documented


async def test_every_header_is_documented(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        response = await running.post("/v1/distilled")
    ours = {name for name in response.headers if name.startswith(("x-", "openai-"))}
    assert (ours | headers_in_the_code()) - NAMED == set()
