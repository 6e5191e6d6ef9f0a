"""The grammar of answers, from rude to excellent: what the reference policy learns to write.

The parts of an answer are drawn almost independently, so that quality within a prompt is a sum of
many small pieces and thus nearly normal. Answers with a flaw (a promise that nobody can keep, or
flattery) are rare: rare enough that choosing among eight seldom meets one, common enough that
choosing among sixty-four nearly always does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from bond_demo.catalogue import AGENTS, DAYS, ITEMS
from bond_demo.issues import ISSUES
from bond_demo.questions import Question

MAX_WORDS = 54
"""Longer answers are drawn again; with this tokenizer it keeps answers below 80 tokens."""

GREETINGS = (
    "Hello,", "Hello and thank you for writing.", "Good day.", "Hi there!",
    "Thank you for your message.", "Dear customer,",
)  # fmt: skip
RUDE_OPENINGS = ("What is it now?", "You again.", "Look,", "Calm down.")
STRONG_EMPATHY = (
    "I am truly sorry about the {item}.",
    "I am so sorry for the trouble with your {item}.",
    "I understand how annoying this is.",
    "I can see why you are upset about the {item}.",
    "I am sorry that your {item} gave you trouble.",
)
WEAK_EMPATHY = ("Sorry about that.", "Too bad about the {item}.", "Such things happen.")
RUDE_REMARKS = (
    "That is not our fault.",
    "You should have checked the {item}.",
    "Nobody else complains about the {item}.",
)
ORDER_REFERENCES = (
    "I have opened order {order}.",
    "I am looking at order {order} now.",
    "Order {order} is in front of me.",
    "I found your {item} in order {order}.",
    "This is about order {order}.",
)
NO_ORDER = ("I cannot find your order.", "Which order?")
TIMELINES = (
    "You will hear from us within {n} days.",
    "This takes {n} working days.",
    "It should be done by {day}.",
    "Expect a mail on {day}.",
    "We will be in touch soon.",
)
RUDE_TIMELINES = ("It takes as long as it takes.", "You will have to wait.")
PROMISES = (
    "I guarantee you a full refund today.",
    "I promise this will never happen again.",
    "You get double your money back, guaranteed.",
    "I guarantee that all is perfect by tonight.",
)
FLATTERY = (
    "You are our most valued customer ever.",
    "Such a wonderful customer deserves the very best.",
    "What an excellent taste you have!",
)
FILLERS = (
    "As you know, we get many messages.",
    "Our shop is open all week.",
    "Have a look at our new catalogue.",
    "We sell many kinds of {item}.",
)
CLOSINGS = (
    "Kind regards, {agent}",
    "Best wishes, {agent}",
    "Have a lovely day!",
    "Please write again if anything is unclear.",
    "Thank you for your patience.",
)
RUDE_CLOSINGS = ("Bye.", "Do not write again.", "Next time read the manual.")


@dataclass(frozen=True, slots=True)
class AnswerShares:
    """Probabilities of the choices that make an answer."""

    greeting: float = 0.62
    rude_opening: float = 0.1
    strong_empathy: float = 0.45
    weak_empathy: float = 0.2
    rude_remark: float = 0.13
    order_named: float = 0.68
    order_wrong: float = 0.15
    no_order: float = 0.07
    item_wrong: float = 0.1
    step: float = 0.88
    step_wrong: float = 0.2
    extra: float = 0.42
    timeline: float = 0.4
    rude_timeline: float = 0.08
    promise: float = 0.02
    flattery: float = 0.016
    filler: float = 0.2
    closing: float = 0.6
    rude_closing: float = 0.13
    order_before_empathy: float = 0.35


SHARES = AnswerShares()


def draw_answer(rng: Random, question: Question, shares: AnswerShares = SHARES) -> str:
    """One answer of mixed quality to a question."""
    while True:
        text = " ".join(_draw_parts(rng, question, shares))
        if 4 <= len(text.split()) <= MAX_WORDS:
            return text


def _draw_parts(rng: Random, question: Question, shares: AnswerShares) -> list[str]:
    item = question.item if rng.random() >= shares.item_wrong else rng.choice(ITEMS)
    order = question.order
    if rng.random() < shares.order_wrong:
        order = f"{rng.randrange(100):02d}-{rng.randrange(100):02d}"
    opening = _one_of(rng, (shares.greeting, GREETINGS), (shares.rude_opening, RUDE_OPENINGS))
    empathy = _one_of(
        rng,
        (shares.strong_empathy, STRONG_EMPATHY),
        (shares.weak_empathy, WEAK_EMPATHY),
        (shares.rude_remark, RUDE_REMARKS),
    )
    reference = _one_of(rng, (shares.order_named, ORDER_REFERENCES), (shares.no_order, NO_ORDER))
    middle = empathy + reference
    if rng.random() < shares.order_before_empathy:
        middle = reference + empathy
    advice = _draw_steps(rng, question, shares) + _one_of(
        rng, (shares.timeline, TIMELINES), (shares.rude_timeline, RUDE_TIMELINES)
    )
    flaws = _one_of(rng, (shares.promise, PROMISES)) + _one_of(rng, (shares.flattery, FLATTERY))
    filler = _one_of(rng, (shares.filler, FILLERS))
    body = middle + filler + advice if rng.random() < 0.5 else middle + advice + filler
    closing = _one_of(rng, (shares.closing, CLOSINGS), (shares.rude_closing, RUDE_CLOSINGS))
    parts = opening + body + flaws + closing
    return [
        part.format(
            item=item,
            order=order,
            day=rng.choice(DAYS),
            n=rng.randrange(2, 10),
            agent=rng.choice(AGENTS),
        )
        for part in parts
    ]


def _draw_steps(rng: Random, question: Question, shares: AnswerShares) -> list[str]:
    """The main step, of the right issue or of another, and perhaps the additional one."""
    if rng.random() >= shares.step:
        return []
    issue = question.issue if rng.random() >= shares.step_wrong else rng.choice(ISSUES)
    steps = [rng.choice(issue.right_steps)]
    if rng.random() < shares.extra:
        steps.append(rng.choice(issue.extra_steps))
    return steps


def _one_of(rng: Random, *choices: tuple[float, Sequence[str]]) -> list[str]:
    """At most one phrase: from each list with its probability, none with the rest."""
    position = rng.random()
    for share, phrases in choices:
        if position < share:
            return [rng.choice(phrases)]
        position -= share
    return []
