"""The prompts of the demo world: for training, for traffic, and the held-out ones for reports."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from bond_core.holdout import Split, split_of
from bond_core.types import Conversation, Message
from bond_demo.questions import Question, distinct_questions

GATE_PROMPTS = 256
REPORT_PROMPTS = 512


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A prompt that no training step may see, and whether its template is held out too."""

    messages: tuple[Message, ...]
    template_held_out: bool


def training_questions(count: int, seed: int) -> list[Question]:
    """Distinct questions of the training split, none written by a held-out template."""
    drawn = distinct_questions(Random(seed))
    return list(islice((q for q in drawn if split_of(q.messages) is Split.TRAIN), count))


def traffic(seed: int) -> Iterator[tuple[Message, ...]]:
    """Endless distinct questions as users would ask them: any split, no held-out template."""
    for question in distinct_questions(Random(seed)):
        yield question.messages


def held_out_prompts(split: Split, count: int, seed: int) -> list[HeldOutPrompt]:
    """Distinct prompts of one held-out split, alternately with a seen and a held-out template."""
    sources = [
        (q for q in distinct_questions(Random(seed + held_out), bool(held_out)))
        for held_out in (0, 1)
    ]
    chosen = [(q for q in source if split_of(q.messages) is split) for source in sources]
    return [
        HeldOutPrompt(question.messages, question.template_held_out)
        for question in (next(chosen[place % 2]) for place in range(count))
    ]


def write_held_out_prompts(path: Path, prompts: Iterable[HeldOutPrompt]) -> None:
    """One JSON object a line: `messages` and `template_held_out`."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            row = {
                "messages": as_dicts(prompt.messages),
                "template_held_out": prompt.template_held_out,
            }
            file.write(json.dumps(row) + "\n")


def read_held_out_prompts(path: Path) -> list[HeldOutPrompt]:
    """What `write_held_out_prompts` wrote."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [HeldOutPrompt(as_messages(row["messages"]), row["template_held_out"]) for row in rows]


def as_dicts(messages: Conversation) -> list[dict[str, str]]:
    """The JSON form of a conversation."""
    return [message.as_dict() for message in messages]


def as_messages(rows: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    """A conversation from its JSON form."""
    # the role is text in JSON, and one of ours in the files of the world
    return tuple(Message(row["role"], row["content"]) for row in rows)  # type: ignore[arg-type]
