"""Selection: the highest raw score, ties to the lowest index, equal texts scored once."""

import asyncio
import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from bond_core.errors import ScoringError
from bond_core.types import Completion, Conversation, Generation, Message, ToolCall
from bond_server.services.best_of_n import (
    ONLY_TOOL_CALLS,
    SCORING_FAILED,
    rank,
    select,
    unranked,
)
from bond_server.services.drawing import DEADLINE, Drawn

PROMPT = (Message("user", "hi"),)


def completion(text: str) -> Completion:
    return Completion(text, (1, 2), (-0.5, -0.5), "stop")


def drawn(*completions: Completion, indices: tuple[int, ...] | None = None) -> Drawn:
    return Drawn(Generation((1,), completions), indices or tuple(range(len(completions))))


class Table:
    """A scorer that looks scores up and remembers what it was asked."""

    name = identity = "table"

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores
        self.asked: list[str] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        assert len(prompts) == len(completions)
        self.asked += completions
        missing = [text for text in completions if text not in self.scores]
        if missing:
            raise ScoringError(f"no score for {missing[0]!r}")
        return [self.scores[text] for text in completions]


def test_rank_puts_the_highest_first_and_ties_in_order() -> None:
    assert rank([0.1, 0.7, -2.0, 0.7, 0.9]) == [4, 1, 3, 0, 2]
    assert rank([0.0, 0.0, 0.0]) == [0, 1, 2]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_rank_is_a_stable_sort(scores: list[float]) -> None:
    order = rank(scores)
    assert sorted(order) == list(range(len(scores)))
    for left, right in itertools.pairwise(order):
        assert (scores[left], -left) > (scores[right], -right)
    assert order[0] == scores.index(max(scores))


async def test_select_returns_the_best_n_of_all() -> None:
    scorer = Table({"a": 0.5, "b": 2.0, "c": -1.0})
    candidates = [completion(text) for text in ("a", "b", "c", "b")]
    selection = await select(scorer, PROMPT, drawn(*candidates), 2)
    assert selection.chosen == (1, 3)
    assert [c.score for c in selection.candidates] == [0.5, 2.0, -1.0, 2.0]
    assert [c.index for c in selection.candidates] == [0, 1, 2, 3]
    assert scorer.asked == ["a", "b", "c"]
    assert selection.degraded is None
    assert selection.score_s > 0


async def test_a_scoring_failure_returns_the_first_and_says_so() -> None:
    candidates = [completion("a"), completion("unknown"), completion("b")]
    selection = await select(Table({"a": 1.0, "b": 9.0}), PROMPT, drawn(*candidates), 2)
    assert selection.chosen == (0, 1)
    assert selection.degraded == SCORING_FAILED
    assert selection.error == "no score for 'unknown'"
    assert [c.score for c in selection.candidates] == [None, None, None]


def test_unranked_keeps_the_order_of_drawing() -> None:
    selection = unranked(drawn(completion("a"), completion("b")), 1)
    assert selection.chosen == (0,)
    assert [c.completion.text for c in selection.candidates] == ["a", "b"]
    assert selection.degraded is None


async def test_candidates_that_ended_in_time_keep_their_indices() -> None:
    some = drawn(completion("a"), completion("b"), completion("c"), indices=(1, 4, 6))
    selection = await select(Table({"a": 0.0, "b": 1.0, "c": 2.0}), PROMPT, some, 2)
    assert selection.chosen == (6, 4)
    assert [(c.index, c.score) for c in selection.candidates] == [(1, 0.0), (4, 1.0), (6, 2.0)]
    assert unranked(some, 2).chosen == (1, 4)


async def test_scoring_that_does_not_end_in_time_leaves_the_first() -> None:
    class Slow(Table):
        async def score(
            self, prompts: Sequence[Conversation], completions: Sequence[str]
        ) -> list[float]:
            await asyncio.sleep(60)
            return await super().score(prompts, completions)

    some = drawn(completion("a"), completion("b"))
    selection = await select(Slow({"a": 0.0, "b": 1.0}), PROMPT, some, 1, within_s=0.01)
    assert (selection.chosen, selection.degraded) == ((0,), DEADLINE)
    assert selection.error == "scoring did not end before the deadline"


async def test_a_candidate_that_only_calls_tools_cannot_be_ranked() -> None:
    call = Completion("", (1,), (-0.5,), "tool_calls", tool_calls=(ToolCall("1", "find", "{}"),))
    scorer = Table({"a": 1.0, "": 5.0})
    selection = await select(scorer, PROMPT, drawn(completion("a"), call), 1)
    assert (selection.chosen, selection.degraded) == ((0,), ONLY_TOOL_CALLS)
    assert scorer.asked == []


async def test_raw_text_is_judged_as_what_a_user_says() -> None:
    class Prompts(Table):
        async def score(
            self, prompts: Sequence[Conversation], completions: Sequence[str]
        ) -> list[float]:
            assert [list(prompt) for prompt in prompts] == [[Message("user", "Once upon")]]
            return [1.0]

    selection = await select(
        Prompts({}), [Message("prompt", "Once upon")], drawn(completion("a")), 1
    )
    assert selection.degraded is None
