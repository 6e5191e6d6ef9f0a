"""The held-out split is a property of the conversation's beginning, for ever."""

from collections import Counter

import pytest

from bond_core.holdout import GATE_SHARE, REPORT_SHARE, Split, split_of, split_of_text
from bond_core.types import Message

# Written down once: a change would let held-out prompts of existing logs into training.
PINNED = {
    "Where is order 0?": Split.TRAIN,
    "Where is order 15?": Split.GATE,
    "Where is order 13?": Split.REPORT,
}


def user(text: str) -> Message:
    return Message("user", text)


def test_the_whole_conversation_stays_where_its_first_message_is() -> None:
    opening = next(
        f"question {i}" for i in range(200) if split_of_text(f"question {i}") is Split.GATE
    )
    later = [user(opening), Message("assistant", "yes?"), user("another thing")]
    assert split_of([user(opening)]) is split_of(later) is Split.GATE
    assert split_of([Message("system", "be kind"), *later]) is Split.GATE
    assert split_of([user(f"  {opening.replace(' ', '   ')} ")]) is Split.GATE


@pytest.mark.parametrize(("text", "split"), PINNED.items())
def test_the_split_never_changes(text: str, split: Split) -> None:
    assert split_of_text(text) is split


def test_shares_are_as_stated() -> None:
    counts = Counter(split_of_text(f"question number {i}") for i in range(20_000))
    assert counts[Split.GATE] / 20_000 == pytest.approx(GATE_SHARE, abs=0.006)
    assert counts[Split.REPORT] / 20_000 == pytest.approx(REPORT_SHARE, abs=0.006)
