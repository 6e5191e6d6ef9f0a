"""Time-ordered ids: UUIDv7 (RFC 9562 section 5.7), so that rows of the log sort by arrival."""

import os
import time

from bond_core import __version__

COMPLETION_PREFIX = "chatcmpl-"
TEXT_COMPLETION_PREFIX = "cmpl-"
COMPARISON_PREFIX = "bondcmp-"


def uuid7() -> str:
    """A UUIDv7 as 32 hexadecimal digits: 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = milliseconds << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76  # the version
    value = value & ~(0b11 << 62) | 0b10 << 62  # the variant
    return f"{value:032x}"


def fingerprint_of(version: str) -> str:
    """The `system_fingerprint` of answers by a policy version: what may change them."""
    return f"bond-{__version__}-{version}"
