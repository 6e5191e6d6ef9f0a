"""The held-out split: which conversations no training step may ever see.

A conversation belongs to a split for ever, by a hash of its first user message: rows of one
conversation, however it goes on, fall on the same side, and no list has to be kept. Two held-out
halves keep decisions and publications apart: the gate reads `gate`, published numbers `report`.
"""

import hashlib
from collections.abc import Sequence
from enum import StrEnum

from bond_core.types import Message

GATE_SHARE = 0.05
REPORT_SHARE = 0.05
_SALT = b"bondserve held-out split v1\x00"


class Split(StrEnum):
    """Where a conversation may be used."""

    TRAIN = "train"
    GATE = "gate"
    REPORT = "report"


def split_of(messages: Sequence[Message]) -> Split:
    """The split of a conversation, from its first user message (white space collapsed).

    A conversation without a user message hashes its first message of any role.
    """
    first = next((m for m in messages if m.role == "user"), messages[0])
    return split_of_text(first.content)


def split_of_text(first_message: str) -> Split:
    """The split of every conversation that begins with this user message."""
    canonical = " ".join(first_message.split())
    digest = hashlib.sha256(_SALT + canonical.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < GATE_SHARE:
        return Split.GATE
    if position < GATE_SHARE + REPORT_SHARE:
        return Split.REPORT
    return Split.TRAIN
