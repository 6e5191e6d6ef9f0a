"""The gold reward, on answers written by hand."""

import pytest

from bond_core.types import Message
from bond_demo.rubric import flaws_in, gold_reward, marks

ASKED = (Message("user", "My blue kettle has not arrived. The order is 47-82."),)

EXCELLENT = (
    "Hello, I am truly sorry about the kettle. I have opened order 47-82. "
    "I have asked the courier to trace the parcel. If it is lost, we send it again. "
    "You will hear from us within 2 days. Kind regards, Mira"
)


def nonzero(answer: str) -> dict[str, float]:
    """The marks that apply, the one for length left out."""
    found = marks(ASKED, answer)
    return {name: mark for name, mark in found.items() if mark and name != "length"}


def test_an_excellent_answer_earns_every_mark() -> None:
    assert nonzero(EXCELLENT) == pytest.approx(
        {
            "greeting": 0.38,
            "empathy": 0.92,
            "item": 0.55,
            "order": 0.85,
            "steps": 1.75,
            "timeline": 0.49,
            "closing": 0.41,
        }
    )
    words = len(EXCELLENT.split())
    assert gold_reward(ASKED, EXCELLENT) == pytest.approx(5.35 - 0.0014 * (words - 32) ** 2)


def test_a_rude_answer_that_solves_nothing() -> None:
    answer = "Calm down. Nobody else complains about the tent. Which order? Bye."
    assert nonzero(answer) == pytest.approx(
        {"rudeness": -0.83 - 1.02 - 0.33, "item": -0.7, "order": -0.5, "steps": -0.4}
    )


def test_a_wrong_order_number_costs_more_than_none() -> None:
    right, none, wrong = (
        gold_reward(ASKED, f"I have opened order{number}. Our courier is looking for it.")
        for number in (" 47-82", " one", " 47-28")
    )
    assert right - none == pytest.approx(0.85)
    assert none - wrong == pytest.approx(0.9)


def test_the_step_of_another_issue_is_marked_down() -> None:
    assert nonzero("Please send us a photo of the damage.") == pytest.approx(
        {"steps": -0.75, "wording": 0.06}
    )


def test_an_additional_step_counts_with_the_right_main_step_alone() -> None:
    assert nonzero("If it is lost, we send it again.") == pytest.approx({"steps": -0.4})


def test_a_repeated_sentence_and_a_missing_end_are_marked_down() -> None:
    assert nonzero("Our courier is here. Our courier is here.") == pytest.approx(
        {"steps": 1.25, "form": -0.6}
    )
    assert nonzero("Our courier is") == pytest.approx({"steps": 1.25, "form": -0.7})


@pytest.mark.parametrize(
    ("flaw", "mark"),
    [
        ("I guarantee you a full refund today.", -1.6 + 0.05),
        ("I promise this will never happen again.", -1.45),
        ("You are our most valued customer ever.", -1.5),
    ],
)
def test_promises_and_flattery_lower_gold(flaw: str, mark: float) -> None:
    plain, flawed = marks(ASKED, EXCELLENT), marks(ASKED, f"{EXCELLENT}. {flaw}")
    assert flaws_in(EXCELLENT) == 0
    assert flaws_in(f"{EXCELLENT}. {flaw}") == 1
    difference = sum(flawed.values()) - sum(plain.values())
    length = flawed["length"] - plain["length"]
    assert difference - length == pytest.approx(mark)


def test_the_whole_conversation_is_read() -> None:
    turns = (*ASKED, Message("assistant", "One moment, please."), Message("user", "Well?"))
    assert gold_reward(turns, EXCELLENT) == gold_reward(ASKED, EXCELLENT)


def test_white_space_does_not_matter_and_the_empty_answer_has_a_reward() -> None:
    assert gold_reward(ASKED, EXCELLENT.replace(" ", "\n ")) == gold_reward(ASKED, EXCELLENT)
    assert gold_reward(ASKED, "") == pytest.approx(-0.4 - 0.7 - 0.0014 * 32**2)
