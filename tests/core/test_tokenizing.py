"""Where conversations are rendered: long ones away from the event loop."""

import threading

import pytest

from bond_core.tokenizing import rendered
from bond_core.types import Message, ToolCall

LONG = "word " * 4000


@pytest.mark.parametrize(
    ("turn", "away"),
    [
        (Message("user", "word"), False),
        (Message("user", LONG), True),
        (Message("assistant", "", tool_calls=(ToolCall("c", "find", LONG),)), True),
        (Message("assistant", "", reasoning=LONG), True),
    ],
    ids=["short", "text", "calls", "reasoning"],
)
async def test_whatever_makes_a_turn_long_is_rendered_in_another_thread(
    turn: Message, away: bool
) -> None:
    thread = await rendered(threading.get_ident, [[Message("user", "hi"), turn]])
    assert (thread != threading.get_ident()) is away
