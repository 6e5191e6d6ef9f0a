"""The OpenAPI document: what the framework derives, and what it cannot know.

`python -m bond_server.openapi` prints it. It does not depend on the configuration.
"""

import json
import sys
from collections.abc import Iterator
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from bond_server.access.rules import rule_of
from bond_server.schemas.chunks import ChatCompletionChunk, TextCompletionChunk
from bond_server.schemas.completion import ErrorAnswer

Document = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_ANSWERS = "answers"
"""The tag of routes that ask the engine."""
_KEY = "key"

_REASONS = {
    HTTPStatus.BAD_REQUEST: "The request is wrong; `param` names the part that is.",
    HTTPStatus.UNAUTHORIZED: "The gateway has keys, and the request has no valid one.",
    HTTPStatus.FORBIDDEN: "The key, or the cookie without its token, may not do this.",
    HTTPStatus.NOT_FOUND: "There is no such model, version or object.",
    HTTPStatus.CONFLICT: "A request with this `Idempotency-Key` is still running.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not come in in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "This `Idempotency-Key` came with another request before.",
    HTTPStatus.TOO_MANY_REQUESTS: "A limit is reached, or the queue is full; come back later.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A defect; the log has it under the request's id.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Engine, scorer or store cannot do their part now.",
    HTTPStatus.GATEWAY_TIMEOUT: "No candidate ended before the request's deadline.",
}
_ALWAYS = {HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE}
_WITH_KEYS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_WITH_BODY = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
_OF_ANSWERS = {
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.GATEWAY_TIMEOUT,
}

_STREAMS: dict[str, type[BaseModel]] = {
    "ChatCompletion": ChatCompletionChunk,
    "TextCompletion": TextCompletionChunk,
}
"""The events of a stream, by the schema of the answer in one piece."""

_HEADERS_IN = {
    "x-request-id": "Up to 128 visible ASCII characters; comes back, and is in the log.",
    "x-bond-unit": "Whom the arm sticks to, before all fields of the body.",
    "idempotency-key": "Makes a repeated request get the first one's answer.",
}
_EVENTS_TEXT = (
    "With `stream: true`: server-sent events, each `data: ` and a chunk, then `data: [DONE]`. "
    "Comments (`: keep-alive`) may come between. An error after the first byte is an event with "
    "an `error`, and the last one."
)


def install_document(app: FastAPI) -> None:
    """Make the app's document the whole one."""

    def document() -> Document:
        if not app.openapi_schema:
            app.openapi_schema = document_of(app)
        return app.openapi_schema

    app.openapi = document


def document_of(app: FastAPI) -> Document:
    """The document of an app's routes."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document["components"]
    schemas: dict[str, Any] = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # our errors have one shape
        schemas.pop(name, None)
    for model in (ErrorAnswer, *_STREAMS.values()):
        schema = model.model_json_schema(ref_template=_REFERENCE, mode="serialization")
        parts = schema.pop("$defs", {})  # those of whole answers are open, and stay as they are
        schemas |= parts | {name: schemas[name] for name in parts if name in schemas}
        schemas[model.__name__] = schema
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
    for path, method, operation in _operations(document):
        _complete(path, method, operation)
    return document


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _complete(path: str, method: str, operation: Document) -> None:
    rule = rule_of(method, path)
    responses: Document = operation["responses"]
    responses.pop("422", None)
    statuses: set[HTTPStatus] = {*_ALWAYS}
    # keys are optional: a gateway that has none answers everyone
    operation["security"] = [] if rule.is_open else [{}, {_KEY: []}]
    if not rule.is_open:
        statuses |= _WITH_KEYS
    if operation.get("parameters") or method != HTTPMethod.GET:
        statuses.add(HTTPStatus.BAD_REQUEST)
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        statuses.add(HTTPStatus.NOT_FOUND)
    if "requestBody" in operation:
        statuses |= _WITH_BODY
    if _ANSWERS in operation.get("tags", ()):
        statuses |= _OF_ANSWERS
        _describe_answering(operation)
    for status in sorted(statuses):
        responses[str(status.value)] = {
            "description": _REASONS[status],
            "content": {"application/json": {"schema": _reference(ErrorAnswer)}},
        }


def _describe_answering(operation: Document) -> None:
    operation["parameters"] = [
        *operation.get("parameters", ()),
        *(
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": description,
                "schema": {"type": "string"},
            }
            for name, description in _HEADERS_IN.items()
        ),
    ]
    content = operation["responses"]["200"]["content"]
    whole = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    chunk = _STREAMS.get(whole)
    if chunk is not None:
        content["text/event-stream"] = {"itemSchema": _event_of(chunk)}


def _event_of(chunk: type[BaseModel]) -> Document:
    """One server-sent event, as OpenAPI 3.2 describes them."""
    told = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(chunk), _reference(ErrorAnswer)]},
    }
    return {
        "type": "object",
        "description": _EVENTS_TEXT,
        "properties": {
            "data": {"type": "string", "if": {"not": {"const": "[DONE]"}}, "then": told}
        },
        "required": ["data"],
    }


def _reference(model: type[BaseModel]) -> Document:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def text_of(document: Document) -> str:
    """The document as it is committed."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Print the document."""
    from bond_core.config import load_config
    from bond_server.app import create_app

    flags = {
        "model": {"path": "model", "name": "model"},
        "engine": {"type": "fake"},
        "scorer": {"type": "function", "function": "rewards.py:reward"},
    }
    sys.stdout.write(text_of(create_app(load_config(flags=flags, environ={})).openapi()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
