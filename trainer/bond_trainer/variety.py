"""How varied answers are: what a collapsed policy loses, whatever its reward says.

A policy that gives one answer to everything, or that repeats itself inside each answer, can please
a scorer that looks at one answer at a time. Three shares between 0 and 1 show it, each independent
in expectation of the number of samples per prompt, so that 4 of the policy compare with 16 of the
reference on the same prompts. Words are what white space separates; a text without white space is
read by its characters.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NGRAM = 4
"""Length of the sequences whose recurrence inside one answer counts as repetition."""


@dataclass(frozen=True, slots=True)
class Variety:
    """Of all answers of one policy to a set of prompts."""

    repeated_share: float
    """Of the 4-grams of an answer, how many stood in it before; averaged over the answers."""
    identical_share: float
    """Probability that answers to two different prompts are the same text."""
    distinct_share: float
    """Of the pairs of neighbouring words in one answer to each prompt, how many are different
    ("distinct-2", arXiv 1510.03055), averaged over the samples."""


def variety_of(texts_PS: Sequence[Sequence[str]]) -> Variety:
    """Of `(prompts, samples)` texts, as many samples for each prompt."""
    words_PS = [[_words(text) for text in row] for row in texts_PS]
    repeated = [_repeated(words) for row in words_PS for words in row]
    return Variety(
        repeated_share=sum(repeated) / len(repeated),
        identical_share=_identical(texts_PS),
        distinct_share=distinct_n(texts_PS, 2),
    )


def distinct_n(texts_PS: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of one answer to each prompt ("distinct-n", arXiv
    1510.03055), averaged over the samples."""
    words_PS = [[_words(text) for text in row] for row in texts_PS]
    columns = [_distinct(column, n) for column in zip(*words_PS, strict=True)]
    return sum(columns) / len(columns)


def _identical(texts_PS: Sequence[Sequence[str]]) -> float:
    """Over all pairs of answers to different prompts, by counting equal texts."""
    together = Counter(text for row in texts_PS for text in row)
    within = [Counter(row) for row in texts_PS]
    total = sum(together.values())
    pairs = total**2 - sum(sum(row.values()) ** 2 for row in within)
    equal = sum(n * n for n in together.values()) - sum(n * n for r in within for n in r.values())
    return equal / pairs if pairs else 0.0  # of one prompt nothing is shared with another


def _words(text: str) -> Sequence[str]:
    words = text.split()
    return words if len(words) > 1 else text.strip()


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _repeated(words: Sequence[str]) -> float:
    found = _ngrams(words, NGRAM)
    return 1 - len(set(found)) / len(found) if found else 0.0


def _distinct(answers: Iterable[Sequence[str]], n: int) -> float:
    """An answer of fewer words counts as one n-gram, so that short answers count too."""
    found = [ngram for words in answers for ngram in _ngrams(words, n) or [tuple(words)]]
    return len(set(found)) / len(found)
