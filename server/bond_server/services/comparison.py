"""One prompt, several arms: answered one after the other, shown side by side, scored alike."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bond_core.errors import BondError, ScoringError
from bond_core.rewards import Scorer
from bond_core.store import Annotation, Completions
from bond_core.types import judged_as
from bond_server.services.admission import Line
from bond_server.services.after_answer import AfterAnswer, first_text
from bond_server.services.ask import Ask
from bond_server.services.generation import Answer, Begun, GenerationService

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComparedAnswer:
    """An arm's answer with the score that every arm gets from the same scorer."""

    answer: Answer
    score: float | None
    """None if scoring failed."""


class ComparisonService:
    """Runs the arms in turn, so that none waits for another one's rows and the latencies that are
    compared are each arm's own; each is recorded like any other request."""

    def __init__(
        self,
        generation: GenerationService,
        scorer: Scorer,
        completions: Completions,
        after_answer: AfterAnswer,
    ) -> None:
        self._generation = generation
        self._scorer = scorer
        self._completions = completions
        self._after_answer = after_answer

    async def compare(self, asks: Sequence[Ask]) -> list[ComparedAnswer]:
        """Answer all asks in their order.

        Nothing is drawn if one of them is wrong (`InvalidRequestError`), or if a limit of the key
        does not let all of them pass. If one fails, the others still end and are recorded, and its
        error is raised.
        """
        answers: list[Answer] = []
        failures: list[Exception] = []
        try:
            line = Line(at_once=1)
            for begun in await self._generation.begin_all(asks):
                try:
                    arm = replace(_now(begun), line=line)
                    answers.append(await self._generation.answer(arm, follow_up=False))
                except Exception as error:
                    failures.append(error)
            compared = await self._score(answers)
        except BaseException:
            for answer in answers:  # they were given, and are to be measured all the same
                self._after_answer.submit(answer.record)
            raise
        for item in compared:
            self._after_answer.submit(replace(item.answer.record, score=item.score))
        if failures:
            # a failure of ours says more than a refusal that it may have caused
            raise next((f for f in failures if not isinstance(f, BondError)), failures[0])
        return compared

    async def _score(self, answers: Sequence[Answer]) -> list[ComparedAnswer]:
        """Score what selection has not scored; the score joins the row."""
        missing = [a.record for a in answers if a.record.score is None]
        found: dict[str, float] = {}
        if missing:
            try:
                values = await self._scorer.score(
                    [judged_as(r.messages) for r in missing], [first_text(r) for r in missing]
                )
            except ScoringError as error:
                logger.warning("a comparison is without scores: %s", error.loggable)
            else:
                found = {r.id: value for r, value in zip(missing, values, strict=True)}
                await self._completions.annotate(
                    [Annotation(id_, score=value) for id_, value in found.items()]
                )
        return [
            ComparedAnswer(answer, found.get(answer.record.id, answer.record.score))
            for answer in answers
        ]


def _now(begun: Begun) -> Begun:
    """The same, timed from now: the arms before it are no part of its time."""
    context = replace(begun.ask.context, started=time.perf_counter())
    draft = replace(begun.draft, ask=replace(begun.ask, context=context))
    return replace(begun, draft=draft)
