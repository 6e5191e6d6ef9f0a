"""The sans-I/O core: what to send, and what an answer means. Both clients share it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bond_client.errors import BondAPIError, BondProtocolError, class_for
from bond_client.reading import Reader
from bond_client.state import Health

Messages = str | Sequence[Mapping[str, str]]
"""A conversation as role and content pairs; a string is one user message."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, ready to be sent."""

    method: str
    path: str
    body: Mapping[str, object] | None = None


MODELS = Call("GET", "/v1/models")
POLICIES = Call("GET", "/v1/policies")
TRAINING = Call("GET", "/v1/training")
READY = Call("GET", "/readyz")


def chat(
    messages: Messages, model: str, return_candidates: bool, params: Mapping[str, object]
) -> Call:
    """`POST /v1/chat/completions`: the model id decides the arm."""
    return Call(
        "POST",
        "/v1/chat/completions",
        {"model": model} | _answer_body(messages, return_candidates, params),
    )


def best_of_n(
    messages: Messages, model: str | None, return_candidates: bool, params: Mapping[str, object]
) -> Call:
    """`POST /v1/best-of-n`: the best of N reference candidates."""
    body = _answer_body(messages, return_candidates, params)
    return Call("POST", "/v1/best-of-n", _with_model(model) | body)


def distilled(
    messages: Messages, model: str | None, return_candidates: bool, params: Mapping[str, object]
) -> Call:
    """`POST /v1/distilled`: one sample of the distilled policy."""
    body = _answer_body(messages, return_candidates, params)
    return Call("POST", "/v1/distilled", _with_model(model) | body)


def compare(
    messages: Messages,
    model: str | None,
    arms: Sequence[str] | None,
    params: Mapping[str, object],
) -> Call:
    """`POST /v1/compare`: one prompt, several arms."""
    chosen = {} if arms is None else {"arms": list(arms)}
    return Call(
        "POST",
        "/v1/compare",
        _with_model(model) | {"messages": _as_list(messages)} | chosen | dict(params),
    )


def decode(status: int, content: bytes) -> object:
    """The JSON value of a successful answer.

    Raises `BondAPIError` for an error answer and `BondProtocolError` for what is neither.
    """
    try:
        body: object = json.loads(content)
    except ValueError:
        if status >= 400:
            raise class_for(status)(_excerpt(content), status=status) from None
        raise BondProtocolError(f"the answer is not JSON: {_excerpt(content)}") from None
    if status >= 400:
        raise _error_of(status, body, content)
    return body


def parse_health(status: int, content: bytes) -> Health:
    """The answer of `/readyz`, which is an error answer while the gateway is not ready."""
    try:
        ready = Reader(decode(status, content))
    except BondAPIError as error:
        return Health(ready=False, active=None, reason=error.message)
    return Health(ready=True, active=ready.text("active"), reason=None)


def _answer_body(
    messages: Messages, return_candidates: bool, params: Mapping[str, object]
) -> dict[str, object]:
    bond: dict[str, object] = {"bond": {"return_candidates": True}} if return_candidates else {}
    return {"messages": _as_list(messages)} | dict(params) | bond


def _as_list(messages: Messages) -> list[dict[str, str]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]


def _with_model(model: str | None) -> dict[str, object]:
    return {} if model is None else {"model": model}


def _error_of(status: int, body: object, content: bytes) -> BondAPIError:
    try:
        error = Reader(body).nested("error")
        message, kind = error.text("message"), error.maybe_text("type")
        param, code = error.maybe_text("param"), error.maybe_text("code")
    except BondProtocolError:  # an error of something in between, such as a proxy
        return class_for(status)(_excerpt(content), status=status)
    return class_for(status)(message, status=status, type=kind, param=param, code=code)


def _excerpt(content: bytes) -> str:
    text = " ".join(content[:300].decode(errors="replace").split())
    return text or "an empty answer"
