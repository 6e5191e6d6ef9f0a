"""What ends a claim on an idempotency key: the answer, in the transaction of its row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it was sent."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Settlement:
    """The claim of one holder on one key, and what to keep of the answer."""

    scope: str
    holder: str
    keep_until: float
    """Unix seconds."""
    answer: KeptAnswer | None
    """None where content is not kept: the key is then known to be used, and no more."""

    def without_answer(self) -> "Settlement":
        """The same, with nothing of the answer."""
        return replace(self, answer=None)
