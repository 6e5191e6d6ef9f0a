"""What a rule sees of a prompt."""

from dataclasses import dataclass

from bond_core.types import Message


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt that is offered for learning."""

    id: str
    """Names it in its source."""
    messages: tuple[Message, ...]
    num_tokens: int
    unit: str = ""
    """Who asked, as the gateway logged it; empty where nobody is known (a file)."""
    arrived_at: float = 0.0
    """Unix seconds."""
    key: str = ""
    """The API key that asked, by its id; empty where there is none."""
