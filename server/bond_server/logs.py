"""Lines of the gateway's log: as text or as JSON, with the request's id, and no floods.

No line holds what a prompt or an answer says, nor a key.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

REQUEST_ID: ContextVar[str | None] = ContextVar("bond_request_id", default=None)
"""The request that the running task belongs to; its children inherit it."""
ACCESS = "bond.access"
"""The logger of one line per request."""
REPEAT_EVERY_S = 60.0
"""How often a complaint that goes on is said again, with how often it was made."""
_KEPT_PER_CALL = 16
"""Different texts of one logging call that are told apart at a time."""
_LOUD = ("httpx", "alembic", "transformers", "aiosqlite", "uvicorn.error")
"""Libraries whose information is not about the service."""

LogFormat = Literal["text", "json"]


def configure(form: LogFormat, stream: TextIO | None = None) -> None:
    """Write the log of this process to a stream (stderr): ours from INFO on, libraries' from
    WARNING on. What was configured before is replaced."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    handler.addFilter(Repeated())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # what no line shows, and every one would look up
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    """`time LEVEL logger [request]: message`, for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")
        self._second, self._told = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback after it."""
        request_id = REQUEST_ID.get()
        record.request = "" if request_id is None else f" [{request_id}]"
        return super().format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Local time in milliseconds; what a second has in common is made once for all its lines,
        because the system looks up the time zone for each."""
        second = int(record.created)
        if second != self._second:
            self._told = time.strftime(datefmt or self.default_time_format, time.localtime(second))
            self._second = second
        return f"{self._told},{record.msecs:03.0f}"


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, request_id, message, and the fields
    that a line has of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is a field."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "request_id": REQUEST_ID.get(),
            "message": record.getMessage(),
        }
        line.update(fields_of(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Repeated(logging.Filter):
    """Lets a complaint through when it is new, and again after a while if it goes on.

    A complaint is a line from WARNING on, without a traceback, and the same one if the same call
    writes the same text. So a server that is away is one line, not one per request.
    """

    def __init__(
        self, every_s: float = REPEAT_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._said: dict[tuple[str, int], dict[str, tuple[float, int]]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; one that goes on says how often it was held back."""
        if record.levelno < logging.WARNING or record.exc_info:
            return True
        now, text = self._clock(), record.getMessage()
        said = self._said.setdefault((record.pathname, record.lineno), {})
        at, held_back = said.get(text, (now - self._every_s, 0))
        if now - at < self._every_s:
            said[text] = at, held_back + 1
            return False
        said.pop(text, None)
        while len(said) >= _KEPT_PER_CALL:
            del said[next(iter(said))]
        said[text] = now, 0
        if held_back:
            record.msg = f"{text} ({held_back} more since it was last said)"
            record.args = ()
        return True


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """What a line was given as `extra={"fields": {...}}`."""
    return cast(Mapping[str, Any], getattr(record, "fields", {}))
