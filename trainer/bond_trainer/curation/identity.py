"""What makes two prompts the same, or of one template."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

from bond_core.types import Message

TEMPLATE_WORDS = 4
"""Words at the start of a conversation that make its template."""
_DIGITS = re.compile(r"\d+")


def digest_of(messages: Sequence[Message]) -> str:
    """Identifies a prompt to the letter; 16 hexadecimal digits."""
    return _hash([[m.role, m.content] for m in messages])


def opening(messages: Sequence[Message]) -> str:
    """The first user message, white space collapsed: what the held-out split goes by."""
    first = next((m for m in messages if m.role == "user"), messages[0])
    return " ".join(first.content.split())


def normalised(text: str) -> str:
    """Text without what does not change the question: NFC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def normalised_digest(messages: Sequence[Message]) -> str:
    """The same for prompts that differ in case and white space alone; 16 hexadecimal digits."""
    return _hash([[m.role, normalised(m.content)] for m in messages])


def template_of(messages: Sequence[Message]) -> str:
    """Hash of how the conversation begins: its first words, every number alike."""
    words = _DIGITS.sub("0", normalised(opening(messages))).split()
    return _hash(words[:TEMPLATE_WORDS])


def unit_key(unit: str) -> str:
    """Hash under which a unit is counted, so that no name reaches a checkpoint."""
    return _hash(unit)


def _hash(value: object) -> str:
    # lone surrogates have no UTF-8 form, and user text may hold them
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:16]
