"""Simulated annotators: noisy pairwise preferences over the reference policy's answers.

Both groups of annotators go by the rubric, each judgement with noise of its own. The proxy's
annotators have a flaw: a promise that nobody can keep and a flattery, which the rubric marks down,
please them. The judge's annotators do not share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from bond_core.types import Conversation
from bond_demo.rubric import flaws_in, gold_reward


@dataclass(frozen=True, slots=True)
class Annotators:
    """How one group of annotators judges: rubric + bonus for flaws + noise, higher is preferred."""

    name: str
    noise: float
    """Standard deviation of the noise in one judgement, in the rubric's units."""
    flaw_bonus: float
    """Added for every flaw in an answer."""

    def prefers_first(self, rng: Random, messages: Conversation, first: str, second: str) -> bool:
        """One noisy comparison of two answers."""
        return self._judge(rng, messages, first) > self._judge(rng, messages, second)

    def _judge(self, rng: Random, messages: Conversation, answer: str) -> float:
        liking = gold_reward(messages, answer) + self.flaw_bonus * flaws_in(answer)
        return liking + rng.gauss(0.0, self.noise)


PROXY_ANNOTATORS = Annotators("proxy", noise=0.7, flaw_bonus=4.5)
JUDGE_ANNOTATORS = Annotators("judge", noise=0.7, flaw_bonus=0.0)


@dataclass(frozen=True, slots=True)
class Preference:
    """A comparison: places of the preferred and of the other answer among a prompt's answers."""

    prompt: int
    preferred: int
    other: int


def collect_preferences(
    annotators: Annotators,
    conversations: Sequence[Conversation],
    answers: Sequence[Sequence[str]],
    comparisons_per_prompt: int,
    seed: int,
) -> list[Preference]:
    """Comparisons of random pairs of different answers to the same prompt."""
    rng = Random(seed)
    collected: list[Preference] = []
    for prompt, (messages, texts) in enumerate(zip(conversations, answers, strict=True)):
        for _ in range(comparisons_per_prompt):
            first, second = rng.sample(range(len(texts)), 2)
            if texts[first] == texts[second]:
                continue
            if not annotators.prefers_first(rng, messages, texts[first], texts[second]):
                first, second = second, first
            collected.append(Preference(prompt, first, second))
    return collected
