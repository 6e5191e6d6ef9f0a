"""Answers to several prompts of one request: choices in the order of the prompts, `n` for each."""

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from bond_core.json_text import dump_json
from bond_server.forms.answer import (
    COST_HEADER,
    answer_headers,
    bond_view,
    identity_of,
    made_by,
    usage_view,
    usd,
)
from bond_server.forms.events import DONE, buffered
from bond_server.forms.text import TextForm, text_choice
from bond_server.ids import TEXT_COMPLETION_PREFIX
from bond_server.schemas.completion import (
    BondUsage,
    PromptAnswer,
    TextCompletion,
    Usage,
)
from bond_server.services.generation import Answer, Begun


def whole_of(answers: Sequence[Answer], *, return_candidates: bool) -> TextCompletion:
    """One `text_completion` of all answers; it has the id of the first one's row.

    A prompt of which a deadline left fewer than `n` answers leaves a gap in the indices.
    """
    first = answers[0]
    views = [bond_view(answer, return_candidates=return_candidates) for answer in answers]
    prompts: list[PromptAnswer] = [
        {**view, "id": TEXT_COMPLETION_PREFIX + answer.record.id, "usage": usage_view(answer)}
        for view, answer in zip(views, answers, strict=True)
    ]
    return {
        **identity_of(first.record, TEXT_COMPLETION_PREFIX),
        "object": "text_completion",
        "choices": [
            text_choice(index, candidate)
            for position, answer in enumerate(answers)
            for index, candidate in enumerate(answer.returned, position * answer.record.n)
        ],
        "usage": usage_of(answers),
        "bond": {**views[0], "prompts": prompts},
    }


def usage_of(answers: Sequence[Answer]) -> Usage:
    """The tokens of all answers together."""
    usages = [usage_view(answer) for answer in answers]
    made = [usage["bond"] for usage in usages]
    bond: BondUsage = {
        "n": sum(one["n"] for one in made),
        "ended": sum(one["ended"] for one in made),
        "chosen_completion_tokens": sum(one["chosen_completion_tokens"] for one in made),
        "cut_completion_tokens": sum(one["cut_completion_tokens"] for one in made),
        "reward_tokens": sum(one["reward_tokens"] for one in made),
    }
    if (cost_usd := cost_of(answers)) is not None:
        bond["cost_usd"] = cost_usd
    return {
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "completion_tokens": sum(usage["completion_tokens"] for usage in usages),
        "total_tokens": sum(usage["total_tokens"] for usage in usages),
        "bond": bond,
    }


def cost_of(answers: Sequence[Answer]) -> float | None:
    """What all answers cost together, in USD; None without prices."""
    costs = [answer.cost_usd for answer in answers if answer.cost_usd is not None]
    return math.fsum(costs) if costs else None


def headers_of(begun: Sequence[Begun]) -> dict[str, str]:
    """What is known before anything is drawn; all prompts of a request have the same arm."""
    return made_by(begun[0].plan, sum(one.plan.best_of for one in begun))


def whole_headers(answers: Sequence[Answer]) -> dict[str, str]:
    """Those of the answer that was there last, whose timings add up to the time that the request
    took; degraded is the first that is, and the cost that of all."""
    headers = answer_headers(max(answers, key=_took_s))
    headers.pop("x-bond-degraded", None)
    if degraded := next((a.record.degraded for a in answers if a.record.degraded), None):
        headers["x-bond-degraded"] = degraded
    if (cost_usd := cost_of(answers)) is not None:
        headers[COST_HEADER] = usd(cost_usd)
    return headers


def _took_s(answer: Answer) -> float:
    record = answer.record
    return record.queue_s + record.generate_s + record.score_s + answer.overhead_s


async def events_of(
    begun: Sequence[Begun],
    answers: AsyncIterator[Answer],
    *,
    wants_usage: bool,
    return_candidates: bool,
) -> AsyncIterator[str]:
    """The data of each event: a prompt's texts when all of its answers are there and its row is
    committed, in the order of the prompts, then the usage of all, then `[DONE]`."""
    form = TextForm(return_candidates=return_candidates)
    head = form.head(begun[0]) | ({"usage": None} if wants_usage else {})

    def chunk(choice: dict[str, Any], **more: Any) -> str:
        return dump_json(head | {"choices": [choice]} | more)

    told: list[Answer] = []
    async for answer in answers:
        first = len(told) * answer.record.n
        for choice in buffered(form, answer, first):
            yield chunk(choice)
        bond = bond_view(answer, return_candidates=return_candidates)
        for index, candidate in enumerate(answer.returned, first):
            yield chunk(form.closing(index, candidate.completion), bond=bond)
        told.append(answer)
    if wants_usage:
        yield dump_json(head | {"choices": [], "usage": usage_of(told)})
    yield DONE
