"""Token ids and log-probabilities as bytes: the bulk of the log, kept small and exact.

Four bytes a token id; log-probabilities as float32 where that loses nothing (engines compute in
float32), else as float64. Always little-endian. As JSON the same numbers take two to three times
the space and forty times the time.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar

N = TypeVar("N", int, float)

FORMAT = 1
_HEADER = struct.Struct("<IIB")
"""Number of token ids, number of log-probabilities, bytes per log-probability."""


def pack_ids(token_ids: Sequence[int]) -> bytes:
    """Token ids as unsigned 32-bit integers. Raises OverflowError for an id outside them."""
    return _native(array("I", token_ids)).tobytes()


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """What `pack_ids` was given."""
    return tuple(_native(array("I", packed)))


def pack_tokens(candidates: Iterable[tuple[Sequence[int], Sequence[float]]]) -> bytes:
    """(token ids, log-probabilities) of each candidate, one after the other."""
    parts = [bytes([FORMAT])]
    for token_ids, logprobs in candidates:
        narrow = array("f", logprobs)
        floats = narrow if narrow.tolist() == list(logprobs) else array("d", logprobs)
        header = _HEADER.pack(len(token_ids), len(logprobs), floats.itemsize)
        parts += (header, pack_ids(token_ids), _native(floats).tobytes())
    return b"".join(parts)


def unpack_tokens(packed: bytes) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """What `pack_tokens` was given. Raises ValueError for a format that this code does not know."""
    if packed[0] != FORMAT:
        raise ValueError(f"packed tokens have format {packed[0]}, this version reads {FORMAT}")
    candidates: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    at = 1
    while at < len(packed):
        ids, logprobs, width = _HEADER.unpack_from(packed, at)
        middle = at + _HEADER.size + 4 * ids
        end = middle + width * logprobs
        floats = array("f" if width == 4 else "d", packed[middle:end])
        candidates.append((unpack_ids(packed[at + _HEADER.size : middle]), tuple(_native(floats))))
        at = end
    return candidates


def _native(values: "array[N]") -> "array[N]":
    """Little-endian numbers in this machine's order, or the other way round."""
    if sys.byteorder == "big":
        values.byteswap()
    return values
