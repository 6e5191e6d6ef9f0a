"""What a pooling server answered, read with suspicion."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from bond_core.errors import ScorerUnavailableError, ScoringError

_SHOWN = 200
"""Characters of a foreign answer in a message."""
_ABOUT_THE_INPUT = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.INTERNAL_SERVER_ERROR,  # vLLM's answer to a score that is not finite, too
)
"""With these a server that is there says no to one request."""
_NO_SUCH_THING = (
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_IMPLEMENTED,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes

    @property
    def is_ok(self) -> bool:
        """Whether it holds what was asked for."""
        return self.status == HTTPStatus.OK

    def parsed(self) -> object:
        """The body as JSON. Raises `ScorerUnavailableError` if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ScorerUnavailableError(
                f"answered something that is not JSON ({shown(self.body)}): is it a vLLM server?"
            ) from error

    def said(self) -> str:
        """The server's own words in an error, in the forms that vLLM and FastAPI give them."""
        try:
            parsed: object = json.loads(self.body)
        except (ValueError, RecursionError):
            return shown(self.body)
        found: object = parsed
        for key in ("error", "message", "detail"):
            found = fields_of(found).get(key, found)
        return shown(found)

    def refusal(self) -> ScoringError:
        """What an answer other than 200 to a request for scores means, and what to do."""
        status, said = self.status, self.said()
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return ScorerUnavailableError(
                f"refused the API key ({status}: {said}): set api_key in the scorer's section, or "
                "BOND_SCORER__API_KEY, to what the server was started with as --api-key"
            )
        if status in _NO_SUCH_THING:
            return ScorerUnavailableError(
                f"does not score with this model ({status}: {said}): serve a reward model "
                "(sequence classification with one label) with --runner pooling"
            )
        if status == HTTPStatus.BAD_REQUEST and "context length" in said:
            return ScoringError(
                f"found the conversation with the answer too long ({said}): ask for shorter "
                "answers, or start the server with a larger --max-model-len, if the model allows"
            )
        if status in _ABOUT_THE_INPUT:
            return ScoringError(f"refused a request ({status}: {said}); its log may say more")
        return ScorerUnavailableError(
            f"cannot score now ({status}: {said}): look at its log, and that it is not overloaded"
        )


def read_scores(parsed: object, count: int) -> list[float]:
    """The numbers of an answer of `/classify`, in the order of what was asked.

    They may be NaN or infinite. Raises `ScorerUnavailableError` if there is not one for each.
    """
    items = list_of(fields_of(parsed).get("data"))
    if items is None:
        raise ScorerUnavailableError(
            f"answered without a list of scores ({shown(parsed)}): is it vLLM's /classify?"
        )
    if len(items) != count:
        raise ScorerUnavailableError(
            f"answered {len(items)} scores for {count} conversations: update vLLM, or whatever "
            "stands before it"
        )
    scores: dict[int, float] = {}
    for item in items:
        index, score = _read_item(item)
        if not 0 <= index < count or index in scores:
            raise ScorerUnavailableError(
                f"answered score number {index} among {count} twice or out of range: update vLLM, "
                "or whatever stands before it"
            )
        scores[index] = score
    return [scores[index] for index in range(count)]


def fields_of(value: object) -> Mapping[str, object]:
    """A JSON object's fields; none if it is something else."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def list_of(value: object) -> list[object] | None:
    """A JSON array's elements; None if it is something else."""
    return cast("list[object]", value) if isinstance(value, list) else None


def shown(value: object) -> str:
    """A foreign value, cut for a message."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = " ".join(text.split()) or "an empty body"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _read_item(item: object) -> tuple[int, float]:
    fields = fields_of(item)
    index, numbers = fields.get("index"), list_of(fields.get("probs"))
    if not isinstance(index, int) or isinstance(index, bool) or numbers is None:
        raise ScorerUnavailableError(
            f"answered a score in no form that is known ({shown(item)}): is it vLLM's /classify?"
        )
    if len(numbers) != 1 or fields.get("num_classes", 1) != 1:
        raise ScorerUnavailableError(
            f"answered {len(numbers)} numbers for one conversation (num_classes "
            f"{shown(fields.get('num_classes'))}): a reward model has one label; serve one whose "
            "config.json says so"
        )
    number = numbers[0]
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise ScorerUnavailableError(
            f"answered {shown(repr(number))} where a score should be: is it vLLM's /classify?"
        )
    try:
        return index, float(number)
    except OverflowError:  # an integer beyond the largest float
        return index, math.inf
