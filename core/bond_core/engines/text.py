"""From tokens to text while they arrive: whole characters only, and never part of a stop string."""

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders put where bytes do not make a character, or not yet."""


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of tokens without special tokens, spaces as they were generated."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class IncrementalText:
    """Text of one completion as its tokens arrive.

    `push` returns text that is safe to show: it ends in a whole character and holds back what may
    yet turn out to be the beginning of a stop string. Pieces from `push` and `finish`, joined, are
    `text`.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest_stop = max((len(stop_string) for stop_string in stop), default=0)
        self._token_ids: list[int] = []
        self._window = 0
        """First token decoded again with each push: enough context for word pieces."""
        self._read = 0
        """Tokens whose text is in `_known`."""
        self._known = ""
        """Text of whole characters so far."""
        self._shown = 0
        """Characters of `_known` that have been handed out."""
        self.stopped = False
        """Whether a stop string has ended the text."""

    @property
    def text(self) -> str:
        """What has been decoded; complete once `finish` has been called."""
        return self._known

    def push(self, token_id: int) -> str:
        """Take one more token; return what can be shown now."""
        self._token_ids.append(token_id)
        fresh = self._undecoded()
        if self._cut_at_stop(fresh):
            return self._show(len(self._known))
        if fresh.endswith(_REPLACEMENT):
            return ""
        self._accept(fresh)
        return self._show(len(self._known) - self._held_back())

    def finish(self) -> str:
        """Return what was held back; no token follows."""
        if not self.stopped:
            self._accept(self._undecoded())
        return self._show(len(self._known))

    def _undecoded(self) -> str:
        """Text of the tokens after `_read`, in the context of the few before them."""
        if self._read == len(self._token_ids):
            return ""
        before = decode(self._tokenizer, self._token_ids[self._window : self._read])
        after = decode(self._tokenizer, self._token_ids[self._window :])
        return after[len(before) :]

    def _accept(self, fresh: str) -> None:
        self._known += fresh
        self._window, self._read = self._read, len(self._token_ids)

    def _cut_at_stop(self, fresh: str) -> bool:
        """Whether a stop string is complete; if so the text ends before the earliest one."""
        if not self._stop:
            return False
        start = max(len(self._known) - self._longest_stop + 1, 0)
        candidate = self._known + fresh
        found = [at for stop in self._stop if (at := candidate.find(stop, start)) >= 0]
        if not found:
            return False
        self._known = candidate[: min(found)]
        self.stopped = True
        return True

    def _held_back(self) -> int:
        """Length of the longest ending of the text that begins a stop string."""
        for length in range(min(self._longest_stop - 1, len(self._known)), 0, -1):
            ending = self._known[-length:]
            if any(stop.startswith(ending) for stop in self._stop):
                return length
        return 0

    def _show(self, until: int) -> str:
        piece = self._known[self._shown : until]
        self._shown = max(self._shown, until)
        return piece
