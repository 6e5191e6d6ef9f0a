"""Fields of a body that the dialect does not declare: the engine's own, or nobody's."""

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

from bond_core.engines import EngineInfo
from bond_core.engines.base import CHAT_FIELDS
from bond_core.errors import InvalidRequestError
from bond_server.schemas.openai import REFUSED_PARAMETERS

UNSUPPORTED_CODE = "unsupported_parameter"
UNKNOWN_CODE = "unknown_parameter"
ENGINE_FIELDS = CHAT_FIELDS | {"min_p", "repetition_penalty", "response_format"}
"""Fields that clients know, and some engines take."""


def engine_fields(
    sent: Mapping[str, Any], info: EngineInfo, declared: Collection[str], *, chat: bool
) -> dict[str, Any]:
    """What is to be handed to the engine unchanged.

    Raises `InvalidRequestError` for the first field that it does not take, naming it, and for a
    value that JSON cannot carry.
    """
    taken = info.fields if chat else info.fields - CHAT_FIELDS
    for name, value in sent.items():
        if name not in taken:
            raise _refused(name, taken, declared)
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise InvalidRequestError(f"{name} is no JSON: {error}", param=name) from None
    return dict(sent)


def _refused(name: str, taken: Collection[str], declared: Collection[str]) -> InvalidRequestError:
    if name in ENGINE_FIELDS:
        return InvalidRequestError(
            f"{name} is not supported by the engine behind this route; leave it out",
            name,
            UNSUPPORTED_CODE,
        )
    if name in REFUSED_PARAMETERS:
        return InvalidRequestError(f"{name} is not supported; leave it out", name, UNSUPPORTED_CODE)
    close = difflib.get_close_matches(name, {*declared, *taken}, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return InvalidRequestError(f"there is no parameter {name}{hint}", name, UNKNOWN_CODE)
