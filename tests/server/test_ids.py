"""Ids are UUIDv7: time-ordered, with the version and variant bits of RFC 9562."""

import time
import uuid

from bond_server.ids import uuid7


def test_ids_are_uuid_version_7_of_now() -> None:
    before = time.time_ns() // 1_000_000
    parsed = uuid.UUID(uuid7())
    after = time.time_ns() // 1_000_000
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert before <= parsed.int >> 80 <= after


def test_ids_differ_and_sort_by_time() -> None:
    first = [uuid7() for _ in range(1000)]
    time.sleep(0.002)
    second = [uuid7() for _ in range(1000)]
    assert len({*first, *second}) == 2000
    assert max(first) < min(second)
