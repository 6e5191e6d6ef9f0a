"""Time-ordered ids: UUIDv7 (RFC 9562 section 5.7), so that rows of the log sort by arrival."""

import os
import time

from bond_core import __version__

COMPLETION_PREFIX = "chatcmpl-"
TEXT_COMPLETION_PREFIX = "cmpl-"
COMPARISON_PREFIX = "bondcmp-"


class _Random:
    """Bytes of the system's generator, fetched many at a time: each fetch is a system call."""

    def __init__(self) -> None:
        self._bytes = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """So many fresh ones, each given once."""
        if self._used + count > len(self._bytes):
            self._bytes, self._used = os.urandom(4096), 0
        start, self._used = self._used, self._used + count
        return self._bytes[start : self._used]


_random = _Random()
os.register_at_fork(after_in_child=lambda: _random.__init__())


def uuid7() -> str:
    """A UUIDv7 as 32 hexadecimal digits: 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(_random.take(10))
    value = milliseconds << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76  # the version
    value = value & ~(0b11 << 62) | 0b10 << 62  # the variant
    return f"{value:032x}"


def fingerprint_of(version: str) -> str:
    """The `system_fingerprint` of answers by a policy version: what may change them."""
    return f"bond-{__version__}-{version}"
