"""Pieces of text are whole characters, hold stop strings back, and join to the whole."""

import random

import pytest
from tiny_models import make_tokenizer

from bond_core.engines.text import IncrementalText, decode

TOKENIZER = make_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def pieces_of(
    token_ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], IncrementalText]:
    """Pieces until the text stops, the last from `finish`."""
    text = IncrementalText(TOKENIZER, stop)
    pieces: list[str] = []
    for token_id in token_ids:
        pieces.append(text.push(token_id))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text


@pytest.mark.parametrize("text", ["the order", "déjà vu: 日本語 🙂🙃 done", "a\u0301 \ufffd b", ""])
def test_pieces_join_to_the_text(text: str) -> None:
    pieces, incremental = pieces_of(encode(text))
    assert "".join(pieces) == incremental.text == text


def test_a_character_in_several_tokens_comes_whole() -> None:
    pieces, _ = pieces_of(encode("x🙂y"))
    assert [piece for piece in pieces if piece] == ["x", "🙂", "y"]


def test_random_bytes_join_to_what_decoding_all_at_once_gives() -> None:
    rng = random.Random(0)
    for _ in range(300):
        token_ids = [rng.randrange(5, 300) for _ in range(rng.randrange(1, 30))]
        pieces, incremental = pieces_of(token_ids)
        assert "".join(pieces) == incremental.text == decode(TOKENIZER, token_ids)


def test_special_tokens_have_no_text() -> None:
    pieces, _ = pieces_of([*encode("a"), 3, 2, *encode("b"), 0])
    assert "".join(pieces) == "ab"


def test_a_stop_string_across_tokens_cuts_before_it() -> None:
    pieces, text = pieces_of(encode("one two STOP three"), stop=("STOP",))
    assert text.stopped
    assert "".join(pieces) == text.text == "one two "


def test_the_earliest_of_several_stop_strings_counts() -> None:
    pieces, text = pieces_of(encode("abcdef"), stop=("ef", "cd", "zz"))
    assert "".join(pieces) == text.text == "ab"


def test_what_may_become_a_stop_string_is_held_back_and_given_later() -> None:
    pieces, text = pieces_of(encode("a##b###c"), stop=("###",))
    assert pieces[:4] == ["a", "", "", "##b"]
    assert "".join(pieces) == text.text == "a##b"
    pieces, text = pieces_of(encode("a##"), stop=("###",))
    assert pieces == ["a", "", "", "##"]
    assert not text.stopped


def test_stop_strings_of_random_text_never_show() -> None:
    rng = random.Random(1)
    for _ in range(300):
        whole = "".join(rng.choice("ab#é") for _ in range(40))
        stop = tuple("".join(rng.choice("ab#é") for _ in range(rng.randrange(1, 5))) for _ in "12")
        pieces, text = pieces_of(encode(whole), stop)
        ends = [at for s in stop if (at := whole.find(s)) >= 0]
        # The text ends as soon as a stop string is complete, so a longer one that began earlier
        # may still be on its way; both ends are tokens here, one byte or a few each.
        assert text.stopped == bool(ends)
        assert "".join(pieces) == text.text
        assert all(s not in text.text for s in stop)
        assert whole.startswith(text.text)
