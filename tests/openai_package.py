"""The unmodified `openai` package of Python, pointed at a gateway over a real socket."""

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from running_gateway import MODEL, MakeConfig
from served_gateway import Serve, Served

REFERENCE, BON, DISTILLED = (f"{MODEL}:{arm}" for arm in ("reference", "bon", "distilled"))
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "where is my parcel?"}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "find_parcel", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
async def served(serve: Serve, make_config: MakeConfig) -> AsyncGenerator[Served]:
    async with serve(make_config()) as served:
        yield served


@pytest.fixture
async def client(served: Served) -> AsyncGenerator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def bond(answer: Any) -> dict[str, Any]:
    """What the gateway added, which the package keeps."""
    return cast(dict[str, Any], answer.model_extra["bond"])
