"""The one table from exceptions to HTTP, and the one shape of an error."""

import asyncio
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from bond_core.errors import (
    AdapterError,
    BondError,
    DeadlineError,
    EngineUnavailableError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    ScoringError,
    StoreUnavailableError,
    UnknownCompletionError,
    UnknownModelError,
    UnknownVersionError,
)
from bond_server.access.bounded_body import NotUtf8Error, TooDeepError
from bond_server.access.failures import (
    AccessError,
    CsrfError,
    InvalidKeyError,
    LimitExceededError,
    MissingScopeError,
)
from bond_server.access.rules import methods_of, route_of
from bond_server.context import CONTEXT_KEY
from bond_server.schemas.completion import ErrorAnswer, ErrorBody
from bond_server.services.engine_fields import UNKNOWN_CODE

logger = logging.getLogger(__name__)


class NotReadyError(BondError):
    """A part that answers depend on does not work; the message names it."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """How one class of errors is told."""

    error: type[BondError]
    status: HTTPStatus
    type: str
    code: str | None


ERROR_TABLE: tuple[Mapped, ...] = (
    Mapped(
        UnknownCompletionError,
        HTTPStatus.NOT_FOUND,
        "invalid_request_error",
        "completion_not_found",
    ),
    Mapped(InvalidKeyError, HTTPStatus.UNAUTHORIZED, "invalid_request_error", "invalid_api_key"),
    Mapped(MissingScopeError, HTTPStatus.FORBIDDEN, "invalid_request_error", "missing_scope"),
    Mapped(CsrfError, HTTPStatus.FORBIDDEN, "invalid_request_error", "csrf_token_missing"),
    Mapped(
        LimitExceededError,
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_error",
        "rate_limit_exceeded",
    ),
    Mapped(UnknownModelError, HTTPStatus.NOT_FOUND, "invalid_request_error", "model_not_found"),
    Mapped(
        PromptTooLongError,
        HTTPStatus.BAD_REQUEST,
        "invalid_request_error",
        "context_length_exceeded",
    ),
    Mapped(InvalidRequestError, HTTPStatus.BAD_REQUEST, "invalid_request_error", "invalid_value"),
    Mapped(UnknownVersionError, HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "version_unloaded"),
    Mapped(AdapterError, HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "adapter_refused"),
    Mapped(DeadlineError, HTTPStatus.GATEWAY_TIMEOUT, "server_error", "deadline_exceeded"),
    Mapped(
        EngineUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "engine_unavailable"
    ),
    Mapped(ScoringError, HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "scoring_failed"),
    Mapped(
        StoreUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "store_unavailable"
    ),
    Mapped(OverloadedError, HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error", "queue_full"),
    Mapped(NotReadyError, HTTPStatus.SERVICE_UNAVAILABLE, "server_error", "not_ready"),
    Mapped(BondError, HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", "internal_error"),
)
"""First match wins, so that a class stands before its parents."""

HTTP_CODES: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid_body",
    HTTPStatus.NOT_FOUND: "route_not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.REQUEST_TIMEOUT: "body_timeout",
}
"""Codes of errors that the framework raises."""

INTERNAL_CODE = "internal_error"
QUEUE_TIMEOUT_CODE = "queue_timeout"
TOO_MANY_REQUESTS_CODE = "too_many_requests"
SHUTTING_DOWN_CODE = "shutting_down"
VALUE_CODE = "invalid_value"
DEPTH_CODE = "body_too_deep"
TOKEN_LIMIT_CODE = "token_limit_too_low"
NO_KEYS_CODE = "no_keys"
JSON_CODE = "invalid_json"
BODY_CODE = "invalid_body"
HEAD_CODE = "head_too_large"
KEY_REUSED_CODE = "idempotency_key_reused"
KEY_IN_FLIGHT_CODE = "idempotency_key_in_flight"
ANSWER_NOT_KEPT_CODE = "answer_not_kept"


PROMPT_FIELD: Mapping[str, str] = {"/v1/completions": "prompt"}
"""What engines call the messages, where the body calls it otherwise."""

RETRY_HEADER = "x-should-retry"
"""What the SDKs of OpenAI go by before the status."""
WORTH_A_RETRY: Mapping[str, bool] = {
    "rate_limit_exceeded": True,
    "queue_full": True,
    QUEUE_TIMEOUT_CODE: True,
    TOO_MANY_REQUESTS_CODE: True,
    SHUTTING_DOWN_CODE: True,
    KEY_IN_FLIGHT_CODE: True,
    "version_unloaded": True,
    "adapter_refused": False,
    "deadline_exceeded": False,
    INTERNAL_CODE: False,
    ANSWER_NOT_KEPT_CODE: False,
}
"""By code: true where no answer was drawn and later it may go; false where candidates would be
drawn, and paid for, once more with the same end. The others are left to the status."""


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the app take the one shape (unexpected ones: see `bond_server.asgi`)."""

    async def on_bond_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, BondError)
        return bond_error(request.scope, error)

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        _forget_frames(error)
        return _validation_error(error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _http_exception(request, error)

    app.add_exception_handler(BondError, on_bond_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


def _forget_frames(error: BaseException | None) -> None:
    """The framework's frames know the error that knows them, and with it the body: as a cycle it
    would be kept until the collector looks, which is many bodies later."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def error_json(body: ErrorBody, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A response in the one shape."""
    # ASCII escapes survive whatever a caller's own words in the message are
    text = json.dumps(ErrorAnswer(error=body).model_dump())
    told = dict(headers or {})
    if (worth := WORTH_A_RETRY.get(body.code or "")) is not None:
        told[RETRY_HEADER] = "true" if worth else "false"
    return Response(text, status, told, media_type="application/json")


def internal_error(request_id: str) -> Response:
    """What a client learns of a defect of ours: where to find it in the log."""
    return error_json(_internal(request_id), HTTPStatus.INTERNAL_SERVER_ERROR)


def _internal(request_id: str) -> ErrorBody:
    message = f"internal error; the server's log has the cause under request {request_id}"
    return ErrorBody(message=message, type="server_error", param=None, code=INTERNAL_CODE)


def error_event(request: Request, error: Exception | asyncio.CancelledError) -> str:
    """The data of an event that ends a stream which had begun; a cancellation is a shutdown's."""
    if isinstance(error, BondError):
        body, _ = _told(request.scope, error)
    elif isinstance(error, asyncio.CancelledError):
        body = _shutting_down()
    else:
        request_id = request.scope[CONTEXT_KEY].request_id
        logger.exception("request %s failed in its stream", request_id, exc_info=error)
        body = _internal(request_id)
    return json.dumps(ErrorAnswer(error=body).model_dump())


def overloaded(error: OverloadedError) -> Response:
    """What a client gets that is to come back: 429 where the work is too much, 503 where the
    requests themselves are."""
    too_many = error.code == TOO_MANY_REQUESTS_CODE
    status = HTTPStatus.SERVICE_UNAVAILABLE if too_many else HTTPStatus.TOO_MANY_REQUESTS
    kind = "server_error" if too_many else "rate_limit_error"
    body = ErrorBody(message=error.message, type=kind, param=None, code=error.code)
    return error_json(body, status, retry_headers(error.retry_after_s))


def retry_headers(seconds: float) -> dict[str, str]:
    """When to come back, for clients that read whole seconds and for those that read more."""
    milliseconds = math.ceil(seconds * 1000)
    return {
        "retry-after": str(max(1, math.ceil(milliseconds / 1000))),
        "retry-after-ms": str(milliseconds),
    }


def shutting_down() -> Response:
    """What a request gets that outlasts the grace of a shutdown."""
    headers = {**retry_headers(1.0), "connection": "close"}
    return error_json(_shutting_down(), HTTPStatus.SERVICE_UNAVAILABLE, headers)


def _shutting_down() -> ErrorBody:
    return ErrorBody(
        message="the gateway is shutting down and could not wait for this answer any longer "
        "(server.shutdown_grace_s); send the request again",
        type="server_error",
        param=None,
        code=SHUTTING_DOWN_CODE,
    )


def bond_error(scope: Scope, error: BondError) -> Response:
    """The answer that tells an error of ours."""
    _forget_frames(error)
    if isinstance(error, OverloadedError):
        return overloaded(error)
    body, status = _told(scope, error)
    return error_json(body, status, error.headers if isinstance(error, AccessError) else None)


def _told(scope: Scope, error: BondError) -> tuple[ErrorBody, HTTPStatus]:
    row = next(row for row in ERROR_TABLE if isinstance(error, row.error))
    param = error.param if isinstance(error, InvalidRequestError) else None
    if isinstance(error, PromptTooLongError) and param == "messages":
        param = PROMPT_FIELD.get(route_of(scope), param)
    coded = isinstance(error, InvalidRequestError | OverloadedError)
    code = error.code if coded and error.code else row.code
    if row.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s %s: %s", scope["method"], route_of(scope), error.loggable)
    return ErrorBody(message=error.message, type=row.type, param=param, code=code), row.status


def _http_exception(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    message = str(error.detail)
    code = HTTP_CODES.get(status)
    headers = dict(error.headers or {})
    if isinstance(error, TooDeepError):
        code = DEPTH_CODE
    elif status == HTTPStatus.BAD_REQUEST and not isinstance(error, NotUtf8Error):
        message = _describe_unreadable(error)
    elif status == HTTPStatus.NOT_FOUND:
        message = f"there is no route {request.method} {request.url.path}"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        # the framework names those of one route, and a path may have several
        allowed = ", ".join(methods_of(request.url.path)) or "another method"
        message = f"{request.url.path} does not take {request.method}; it takes {allowed}"
        headers = {name: value for name, value in headers.items() if name.lower() != "allow"}
        headers["allow"] = allowed
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    body = ErrorBody(message=message, type=kind, param=None, code=code)
    return error_json(body, status, headers)


def _describe_unreadable(error: HTTPException) -> str:
    if isinstance(error.__cause__, UnicodeDecodeError):
        return f"the body is not UTF-8: byte {error.__cause__.start} cannot be read"
    return "the body cannot be read as JSON: it has an integer of thousands of digits"


def _validation_error(error: RequestValidationError) -> Response:
    """Tell the first problem; `param` is its dotted path in the body or query."""
    problem: Mapping[str, Any] = error.errors()[0]
    location: Sequence[str | int] = problem["loc"]
    path = [str(part) for part in location[1:]]
    message, code, param = problem["msg"], VALUE_CODE, ".".join(path) or None
    kind: str = problem["type"]
    if kind == "json_invalid":
        param, code = None, JSON_CODE
        message = f"the body is not valid JSON: {problem['ctx']['error']} at character {path[0]}"
    elif not path:
        param, code, message = None, BODY_CODE, _describe_body(problem)
    elif kind == "too_short":
        message = f"{param} must not be empty"
    elif kind == "extra_forbidden":
        message, code = _describe_extra(path)
    else:
        message = f"{param}: {message}"
    body = ErrorBody(message=message, type="invalid_request_error", param=param, code=code)
    return error_json(body, HTTPStatus.BAD_REQUEST)


def _describe_body(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "missing":
        return "the body is missing; send a JSON object"
    if isinstance(problem["input"], bytes):
        return "the body was not read as JSON; send the header content-type: application/json"
    if problem["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return "the body must be a JSON object"
    return str(problem["msg"])


def _describe_extra(path: Sequence[str]) -> tuple[str, str]:
    """Of parts of a body, and of bodies that no engine's fields can be in."""
    return f"there is no parameter {'.'.join(path)}", UNKNOWN_CODE
