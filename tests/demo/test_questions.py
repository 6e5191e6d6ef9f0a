"""The grammar of questions."""

from itertools import islice
from random import Random

import pytest

from bond_demo.catalogue import ITEMS
from bond_demo.issues import ISSUES, Issue, issue_told_in
from bond_demo.questions import (
    distinct_questions,
    draw_question,
    opening_of,
    template_pattern,
    uses_held_out_template,
)

MANY = 20_000


def test_twenty_thousand_distinct_questions_without_a_held_out_template() -> None:
    openings = [opening_of(q.messages) for q in islice(distinct_questions(Random(0)), MANY)]
    assert len(set(openings)) == MANY
    assert not any(map(uses_held_out_template, openings))


def test_questions_differ_by_more_than_their_order_numbers() -> None:
    drawn = [draw_question(Random(seed)) for seed in range(2_000)]
    without_order = {opening_of(q.messages).replace(q.order, "") for q in drawn}
    assert len(without_order) > 1_950


def test_same_seed_same_questions() -> None:
    first = list(islice(distinct_questions(Random(7)), 200))
    assert first == list(islice(distinct_questions(Random(7)), 200))
    assert first != list(islice(distinct_questions(Random(8)), 200))


def test_a_question_tells_its_item_its_order_and_its_issue_alone() -> None:
    for held_out in (False, True):
        for question in islice(distinct_questions(Random(1), held_out), 3_000):
            words = " ".join(m.content for m in question.messages if m.role == "user")
            assert question.item in words
            assert question.order in words
            assert issue_told_in(words) is question.issue
            assert question.messages[-1].role == "user"


def test_conversations_have_one_or_three_turns_and_sometimes_a_system_message() -> None:
    drawn = list(islice(distinct_questions(Random(2)), 1_000))
    roles = {tuple(m.role for m in q.messages) for q in drawn}
    assert roles == {
        ("user",),
        ("system", "user"),
        ("user", "assistant", "user"),
        ("system", "user", "assistant", "user"),
    }


def test_held_out_questions_are_recognised() -> None:
    for question in islice(distinct_questions(Random(3), held_out=True), 1_000):
        assert question.template_held_out
        assert uses_held_out_template(opening_of(question.messages))


@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: issue.key)
def test_no_seen_template_writes_what_a_held_out_one_does(issue: Issue) -> None:
    held_out = [template_pattern(template) for template in issue.held_out_templates]
    for template in issue.templates:
        for item in ITEMS:
            text = template.format(item=item, order="12-34", day="Monday")
            assert template_pattern(template).search(text)
            assert not any(pattern.search(text) for pattern in held_out)


@pytest.mark.parametrize("issue", ISSUES, ids=lambda issue: issue.key)
def test_steps_are_recognised_as_their_own_issues(issue: Issue) -> None:
    for step in issue.right_steps:
        assert [other.key for other in ISSUES if other.is_solved_in(step)] == [issue.key]
    for step in issue.extra_steps:
        assert issue.is_rounded_off_in(step)
        assert not any(other.is_solved_in(step) for other in ISSUES)


def test_foreign_words_tell_of_no_issue() -> None:
    assert issue_told_in("What is the capital of France?") is None
    assert issue_told_in("My kettle is damaged and I was charged twice.") is None
