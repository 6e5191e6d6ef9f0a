"""The grammar of answers."""

from random import Random

import pytest

from bond_demo.answers import MAX_WORDS, SHARES, AnswerShares, draw_answer
from bond_demo.questions import draw_question
from bond_demo.rubric import flaws_in, gold_reward

QUESTION = draw_question(Random(5))


def test_same_seed_same_answer() -> None:
    assert draw_answer(Random(1), QUESTION) == draw_answer(Random(1), QUESTION)


def test_answers_are_short_and_nearly_all_distinct() -> None:
    rng = Random(2)
    texts = [draw_answer(rng, QUESTION) for _ in range(1_000)]
    assert len(set(texts)) >= 995
    assert min(len(text.split()) for text in texts) >= 4
    assert max(len(text.split()) for text in texts) <= MAX_WORDS


def test_flaws_come_as_often_as_their_shares_say() -> None:
    rng = Random(3)
    drawn = 20_000
    flaws = sum(flaws_in(draw_answer(rng, QUESTION)) for _ in range(drawn))
    # Four standard errors of a count of this size are about 0.0055.
    assert flaws / drawn == pytest.approx(SHARES.promise + SHARES.flattery, abs=0.0055)


def test_an_answer_of_good_choices_alone_is_praised_by_the_rubric() -> None:
    good = AnswerShares(
        greeting=1, rude_opening=0, strong_empathy=1, weak_empathy=0, rude_remark=0,
        order_named=1, order_wrong=0, no_order=0, item_wrong=0, step=1, step_wrong=0, extra=1,
        timeline=1, rude_timeline=0, promise=0, flattery=0, filler=0, closing=1, rude_closing=0,
    )  # fmt: skip
    rude = AnswerShares(
        greeting=0, rude_opening=1, strong_empathy=0, weak_empathy=0, rude_remark=1,
        order_named=0, order_wrong=0, no_order=1, item_wrong=1, step=0, step_wrong=0, extra=0,
        timeline=0, rude_timeline=1, promise=0, flattery=0, filler=1, closing=0, rude_closing=1,
    )  # fmt: skip
    rng = Random(4)
    best = [gold_reward(QUESTION.messages, draw_answer(rng, QUESTION, good)) for _ in range(100)]
    worst = [gold_reward(QUESTION.messages, draw_answer(rng, QUESTION, rude)) for _ in range(100)]
    assert min(best) > 3.5
    assert max(worst) < -2.5
