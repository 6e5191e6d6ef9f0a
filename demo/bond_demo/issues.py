"""The customers' problems, read from `issues.toml`: how they are told, what a good answer does.

Every template names the item and the order.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Issue:
    """One kind of problem. Each pattern finds its own issue only; matching ignores case."""

    key: str
    cue: str
    right_term: str
    extra_term: str
    templates: tuple[str, ...]
    held_out_templates: tuple[str, ...]
    right_steps: tuple[str, ...]
    extra_steps: tuple[str, ...]

    def is_told_in(self, text: str) -> bool:
        """Whether a customer's words tell of this issue."""
        return re.search(self.cue, text, re.IGNORECASE) is not None

    def is_solved_in(self, answer: str) -> bool:
        """Whether an answer takes the main step of this issue."""
        return re.search(self.right_term, answer, re.IGNORECASE) is not None

    def is_rounded_off_in(self, answer: str) -> bool:
        """Whether an answer takes the additional step of this issue."""
        return re.search(self.extra_term, answer, re.IGNORECASE) is not None


def _read_issues(path: Path) -> tuple[Issue, ...]:
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["issue"]
    return tuple(
        Issue(
            key=entry["key"],
            cue=entry["cue"],
            right_term=entry["right_term"],
            extra_term=entry["extra_term"],
            templates=tuple(entry["templates"]),
            held_out_templates=tuple(entry["held_out_templates"]),
            right_steps=tuple(entry["right_steps"]),
            extra_steps=tuple(entry["extra_steps"]),
        )
        for entry in entries
    )


ISSUES: tuple[Issue, ...] = _read_issues(Path(__file__).with_name("issues.toml"))


def issue_told_in(text: str) -> Issue | None:
    """The issue that a customer's words tell of; None if none, or more than one, is found."""
    found = [issue for issue in ISSUES if issue.is_told_in(text)]
    return found[0] if len(found) == 1 else None
