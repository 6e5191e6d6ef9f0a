"""Every accepted parameter reaches the engine, for every candidate; what nobody knows is named."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from running_gateway import MODEL, MakeConfig, Run, Running

from bond_core.engines.base import CHAT_FIELDS, Engine, Partial
from bond_core.engines.fake import FIELDS
from bond_core.types import Conversation, Generation, Message, SamplingParams, TextDelta
from bond_server.schemas.openai import ChatCompletionRequest, TextCompletionRequest

SETTINGS = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

SAMPLING: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "temperature": ("temperature", st.floats(0.01, 2)),
    "top_p": ("top_p", st.floats(0.001, 1)),
    "top_k": ("top_k", st.integers(0, 300)),
    "presence_penalty": ("presence_penalty", st.floats(-2, 2)),
    "frequency_penalty": ("frequency_penalty", st.floats(-2, 2)),
    "seed": ("seed", st.integers(-(2**63), 2**63 - 1)),
}
"""Body field to its strategy and the name in `SamplingParams`; the others are below."""

TOLD = {
    "max_tokens", "max_completion_tokens", "stop", "logit_bias", "logprobs", "top_logprobs",
    "n", "best_of", "model", "messages", "prompt",
}  # fmt: skip
"""Fields that reach the engine in another form."""
NOT_THE_ENGINES = {
    "user", "safety_identifier", "metadata", "store", "stream", "stream_options", "bond", "echo",
    "suffix",
}  # fmt: skip
"""Fields that are the gateway's alone."""

JSON = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.text(min_size=1, max_size=8)}),
        }
    ),
    min_size=1,
    max_size=3,
)
OWN: dict[str, st.SearchStrategy[Any]] = {
    name: TOOLS if name == "tools" else st.just("auto") if name == "tool_choice" else JSON
    for name in sorted(FIELDS)
}
"""The engine's own fields: whatever JSON there is, but tools, which the fake engine calls."""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@dataclass(frozen=True, slots=True)
class Call:
    """What the engine was asked for."""

    version: str
    prompt: Conversation
    params: SamplingParams
    n: int


@dataclass
class Recorded:
    """The engine with a record of what it was asked for."""

    engine: Engine
    calls: list[Call] = field(default_factory=list)

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        self.calls.append(Call(version, prompt, params, n))
        return await self.engine.generate(version, prompt, params, n, partial)

    def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncIterator[TextDelta]:
        self.calls.append(Call(version, prompt, params, 1))
        return self.engine.stream(version, prompt, params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def record(running: Running) -> Recorded:
    """Put a record between the gateway's services and its engine."""
    recorded = Recorded(running.gateway.engine)
    running.gateway.generation._engine = recorded  # type: ignore[assignment]
    return recorded


@st.composite
def common(draw: st.DrawFn, *, chat: bool) -> dict[str, Any]:
    """Sampling, counts and fields of the engine's own, each present or not."""
    body: dict[str, Any] = {}
    for name, (_, strategy) in SAMPLING.items():
        if draw(st.booleans()):
            body[name] = draw(strategy)
    own = sorted(FIELDS if chat else FIELDS - CHAT_FIELDS)
    for name in draw(st.lists(st.sampled_from(own), unique=True, max_size=4)):
        body[name] = draw(OWN[name])
    body["n"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        body["best_of"] = draw(st.integers(body["n"], 5))
    lengths = ["max_tokens", "max_completion_tokens"] if chat else ["max_tokens"]
    body[draw(st.sampled_from(lengths))] = draw(st.integers(1, 12))
    if draw(st.booleans()):
        body["stop"] = draw(TEXTS | st.lists(TEXTS, min_size=1, max_size=4))
    if draw(st.booleans()):
        keys = st.integers(0, 270).map(str)
        body["logit_bias"] = draw(st.dictionaries(keys, st.floats(-100, 100), max_size=4))
    body["stream"] = draw(st.booleans())
    if body["stream"] and draw(st.booleans()):
        body["stream_options"] = {"include_usage": draw(st.booleans())}
    for name in ("user", "safety_identifier"):
        if draw(st.booleans()):
            body[name] = draw(TEXTS)
    body["store"] = draw(st.booleans() | st.none())
    return body


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies of the chat dialect."""
    body = draw(common(chat=True))
    arm = draw(st.sampled_from(["reference", "bon", "distilled"]))
    body["model"] = f"{MODEL}:{arm}"
    roles = st.sampled_from(["system", "developer", "user", "assistant"])
    turns = st.tuples(roles, TEXTS)
    body["messages"] = [
        {"role": role, "content": content}
        for role, content in draw(st.lists(turns, min_size=1, max_size=3))
    ]
    body["logprobs"] = draw(st.booleans())
    if body["logprobs"] and draw(st.booleans()):
        body["top_logprobs"] = draw(st.integers(0, 20))
    return body


@st.composite
def texts(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies of the older dialect."""
    body = draw(common(chat=False))
    body["model"] = f"{MODEL}:{draw(st.sampled_from(['reference', 'bon', 'distilled']))}"
    prompt = draw(TEXTS)
    body["prompt"] = draw(st.sampled_from([prompt, [prompt]]))
    if draw(st.booleans()):
        body["logprobs"] = draw(st.integers(0, 20))
    return body


def expected_of(body: dict[str, Any], standard: SamplingParams, best_of: int) -> Call:
    """What the engine has to be asked for, by the body alone."""
    stop = body.get("stop", list(standard.stop))
    bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
    prompt: Conversation
    if "messages" in body:
        prompt = tuple(
            Message("system" if m["role"] == "developer" else m["role"], m["content"])
            for m in body["messages"]
        )
        told = body.get("top_logprobs", 0) if body["logprobs"] else None
    else:
        text = body["prompt"]
        prompt = (Message("prompt", text if isinstance(text, str) else text[0]),)
        told = body.get("logprobs")
    params = SamplingParams(
        max_tokens=body.get("max_tokens") or body["max_completion_tokens"],
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logit_bias=bias or standard.logit_bias,
        top_logprobs=told,
        further={
            name: body[name]
            for name in FIELDS & set(body)
            if (name, body[name]) != ("response_format", {"type": "text"})
        },
        **{
            of_engine: body.get(name, getattr(standard, of_engine))
            for name, (of_engine, _) in SAMPLING.items()
        },
    )
    arm = body["model"].rpartition(":")[2]
    default = max(body["n"], best_of) if arm == "bon" else body["n"]
    return Call("v0000", prompt, params, body.get("best_of", default))


@pytest.mark.parametrize(
    ("path", "bodies"), [("/v1/chat/completions", chats()), ("/v1/completions", texts())]
)
def test_every_accepted_parameter_reaches_every_candidate(
    path: str, bodies: st.SearchStrategy[dict[str, Any]], run: Run, make_config: MakeConfig
) -> None:
    config = make_config()
    with asyncio.Runner() as runner:
        context = run(config)
        running = runner.run(context.__aenter__())
        recorded = record(running)

        @SETTINGS
        @given(bodies)
        def check(body: dict[str, Any]) -> None:
            recorded.calls.clear()
            response = runner.run(running.client.post(path, json=body))
            assert response.status_code == 200, response.text
            assert not body["stream"] or response.text.endswith("data: [DONE]\n\n")
            # one call for all candidates: what it was asked for is asked for each of them
            standard = running.gateway.config.sampling.params()
            assert recorded.calls == [expected_of(body, standard, config.arms.best_of)]
            if not body["stream"]:
                assert response.json()["bond"]["best_of"] == recorded.calls[0].n
                assert len(response.json()["choices"]) == body["n"]

        try:
            check()
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("model", [ChatCompletionRequest, TextCompletionRequest])
def test_every_declared_field_is_generated_or_the_gateways_own(model: Any) -> None:
    assert set(model.model_fields) - {*SAMPLING} - TOLD - NOT_THE_ENGINES == set()


@pytest.mark.parametrize(
    ("path", "bodies", "declared"),
    [
        ("/v1/chat/completions", chats(), set(ChatCompletionRequest.model_fields) | FIELDS),
        (
            "/v1/completions",
            texts(),
            set(TextCompletionRequest.model_fields) | (FIELDS - CHAT_FIELDS),
        ),
    ],
)
def test_what_nobody_knows_is_refused_by_name(
    path: str,
    bodies: st.SearchStrategy[dict[str, Any]],
    declared: set[str],
    run: Run,
    make_config: MakeConfig,
) -> None:
    names = TEXTS | st.sampled_from(sorted(CHAT_FIELDS | {"best_off", "Temperature", "echo_", ""}))
    with asyncio.Runner() as runner:
        context = run(make_config())
        running = runner.run(context.__aenter__())
        recorded = record(running)

        @SETTINGS
        @given(bodies, names.filter(lambda name: name not in declared), JSON)
        def check(body: dict[str, Any], name: str, value: Any) -> None:
            if value in ("", [], None, {"type": "text"}):
                value = 1  # some values ask for nothing
            response = runner.run(running.client.post(path, json={**body, name: value}))
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] == name
            assert error["code"] in ("unknown_parameter", "unsupported_parameter")
            assert name in error["message"]
            assert recorded.calls == []

        try:
            check()
        finally:
            runner.run(context.__aexit__(None, None, None))
