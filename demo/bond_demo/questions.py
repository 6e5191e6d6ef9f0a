"""The grammar of questions: conversations that end with a customer who wants an answer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from bond_core.types import Message
from bond_demo.catalogue import COLOURS, DAYS, ITEMS, SYSTEM_PROMPTS
from bond_demo.issues import ISSUES, Issue

_BEFORE = (
    "Hello.", "Hi.", "Good morning.", "Dear team,", "Please help.", "Excuse me.", "Listen.",
    "I am really upset.", "A question:", "This is the third time I write.",
)  # fmt: skip
_AFTER = (
    "Thank you.", "What now?", "Can you help?", "Please hurry.", "I need it by {day}.",
    "This is annoying.", "What should I do?", "I am not happy.", "Thanks in advance.",
    "Please answer by {day}.", "I expected better.",
)  # fmt: skip
_VAGUE_REPLIES = (
    "Let me see what I can do.", "We will look at it.", "Thank you, we got your message.",
    "Could you tell me more?", "One moment, please.",
)  # fmt: skip
_FOLLOW_UPS = (
    "And what happens now?", "That does not help me.", "Please tell me what to do.",
    "I heard nothing since {day}.", "Well?", "I am still here. Any news?",
)  # fmt: skip

_SYSTEM_SHARE = 0.25
_FOLLOW_UP_SHARE = 0.2
_BEFORE_SHARE = 0.5
_AFTER_SHARE = 0.6
_COLOUR_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that waits for an answer, and what the grammar knows about it."""

    messages: tuple[Message, ...]
    issue: Issue
    item: str
    order: str
    template_held_out: bool


def draw_question(rng: Random, held_out: bool = False) -> Question:
    """One question; with `held_out` its template is one of the held-out ones."""
    issue = rng.choice(ISSUES)
    template = rng.choice(issue.held_out_templates if held_out else issue.templates)
    item = rng.choice(ITEMS)
    order = f"{rng.randrange(100):02d}-{rng.randrange(100):02d}"
    described = f"{rng.choice(COLOURS)} {item}" if rng.random() < _COLOUR_SHARE else item
    parts = [template.format(item=described, order=order, day=rng.choice(DAYS))]
    if rng.random() < _BEFORE_SHARE:
        parts.insert(0, rng.choice(_BEFORE))
    if rng.random() < _AFTER_SHARE:
        parts.append(rng.choice(_AFTER).format(day=rng.choice(DAYS)))
    messages = [Message("user", " ".join(parts))]
    if rng.random() < _SYSTEM_SHARE:
        messages.insert(0, Message("system", rng.choice(SYSTEM_PROMPTS)))
    if rng.random() < _FOLLOW_UP_SHARE:
        messages.append(Message("assistant", rng.choice(_VAGUE_REPLIES)))
        messages.append(Message("user", rng.choice(_FOLLOW_UPS).format(day=rng.choice(DAYS))))
    return Question(tuple(messages), issue, item, order, held_out)


def distinct_questions(rng: Random, held_out: bool = False) -> Iterator[Question]:
    """Endless questions, no first user message twice."""
    seen: set[str] = set()
    while True:
        question = draw_question(rng, held_out)
        opening = opening_of(question.messages)
        if opening not in seen:
            seen.add(opening)
            yield question


def opening_of(messages: tuple[Message, ...]) -> str:
    """The first user message: what the held-out split hashes."""
    return next(message.content for message in messages if message.role == "user")


def uses_held_out_template(text: str) -> bool:
    """Whether a customer's message is written by one of the held-out templates."""
    return any(pattern.search(text) for pattern in _HELD_OUT_PATTERNS)


def template_pattern(template: str) -> re.Pattern[str]:
    """The pattern of all texts that a template can give, anywhere in a message."""
    slots = {
        "item": f"(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join(ITEMS)})",
        "order": r"\d\d-\d\d",
        "day": f"(?:{'|'.join(DAYS)})",
    }
    pieces = re.split(r"\{(\w+)\}", template)
    literal_and_slot = (
        slots[piece] if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)
    )
    return re.compile(r"(?:^|(?<= ))" + "".join(literal_and_slot))


_HELD_OUT_PATTERNS = tuple(
    template_pattern(template) for issue in ISSUES for template in issue.held_out_templates
)
