"""Each rule of the curation alone, against values worked out by hand."""

import math
import random
from fractions import Fraction

import pytest
from tiny_training import messages_of

from bond_core.holdout import Split
from bond_core.types import Message
from bond_trainer.curation import Row
from bond_trainer.curation.duplicates import DuplicateRule
from bond_trainer.curation.health_checks import PingRule, RegularityRule
from bond_trainer.curation.held_out import HeldOutRule
from bond_trainer.curation.identity import digest_of, normalised_digest, template_of
from bond_trainer.curation.lengths import LengthRule
from bond_trainer.curation.shares import ShareRule
from bond_trainer.curation.spikes import SpikeRule


def row(number: int, text: str = "", unit: str = "u", at: float = 0.0, tokens: int = 5) -> Row:
    messages = (Message("user", text or f"question {number}"),)
    return Row(f"row-{number}", messages, tokens, unit, at)


def asked(*turns: str) -> tuple[Message, ...]:
    """A conversation of user turns with answers between."""
    answered = [[Message("user", turn), Message("assistant", "so?")] for turn in turns]
    return tuple(message for pair in answered for message in pair)[:-1]


@pytest.mark.parametrize(
    ("tokens", "reason"), [(2, "too_short"), (3, None), (8, None), (9, "too_long")]
)
def test_lengths_include_their_bounds(tokens: int, reason: str | None) -> None:
    assert LengthRule(3, 8).refuse(row(0, tokens=tokens)) == reason


def test_held_out_by_split_and_by_opening() -> None:
    [train], [gate] = messages_of(Split.TRAIN, 1), messages_of(Split.GATE, 1)
    assert HeldOutRule(()).refuse(Row("a", train, 5)) is None
    assert HeldOutRule(()).refuse(Row("a", gate, 5)) == "held_out"
    assert HeldOutRule({train[0].content}).refuse(Row("a", train, 5)) == "held_out"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (asked("ping"), "health_check"),
        (asked("  PING!! "), "health_check"),
        (asked("Are  you\nthere?"), "health_check"),
        ((Message("system", "Be kind."), Message("user", "Ping.")), "health_check"),
        (asked("ping is not found"), None),
        (asked("pinging"), None),
        (asked("ping", "and now my question"), None),
    ],
)
def test_pings_are_whole_messages(messages: tuple[Message, ...], reason: str | None) -> None:
    rule = PingRule(["ping", "Are you there?"])
    assert rule.refuse(Row("a", messages, 5)) == reason


@pytest.mark.parametrize(
    ("times", "reasons"),
    [
        ([0, 10, 20, 30, 40, 50], [None] * 4 + ["health_check"] * 2),
        ([0, 10, 22, 33, 43], [None] * 4 + ["health_check"]),  # 10 to 12 seconds: ratio 1.2
        ([0, 10, 23, 33, 43], [None] * 5),  # ratio 1.3
        ([0, 4, 8, 12, 16], [None] * 5),  # too fast for a probe
        ([0, 90, 100, 110, 120, 130], [None] * 5 + ["health_check"]),  # the last five are regular
        ([40, 30, 20, 10, 0], [None] * 5),  # rows out of order
    ],
)
def test_regular_repetition_is_a_probe(times: list[float], reasons: list[str | None]) -> None:
    rule = RegularityRule()
    rows = [row(n, "Is the shop open?", at=float(t)) for n, t in enumerate(times)]
    assert [rule.refuse(r) for r in rows] == reasons
    assert rule.first_of(rows[-1]) == "row-0"


def test_regularity_is_of_one_unit_and_one_prompt() -> None:
    rule = RegularityRule()
    for number in range(10):
        at = 10.0 * number
        assert rule.refuse(row(number, "same", unit=f"unit-{number % 2}", at=at**1.5)) is None
        assert rule.refuse(row(number, at=at)) is None  # each another prompt
        assert rule.refuse(row(number, "of a file", unit="", at=at)) is None


def test_regularity_remembers_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bond_trainer.curation.health_checks.MAX_TRACKED", 2)
    rule = RegularityRule()
    for number in range(4):
        rule.refuse(row(number))
    assert [first for *_, first, _ in rule.state()["arrivals"]] == ["row-2", "row-3"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("where  is\nMY parcel?", True),
        (" Where is my parcel? ", True),
        ("Where is my parcel", False),
        ("Where is my parcel? 2", False),
    ],
)
def test_duplicates_are_equal_but_for_case_and_white_space(text: str, same: bool) -> None:
    known = (Message("user", "Where is my parcel?"),)
    rule = DuplicateRule()
    rule.remember(normalised_digest(known))
    other = (Message("user", text),)
    assert digest_of(other) != digest_of(known)
    assert rule.refuse(Row("a", other, 5)) == ("duplicate" if same else None)
    rule.forget(normalised_digest(known))
    assert rule.refuse(Row("a", other, 5)) is None


def test_composed_and_decomposed_letters_and_roles() -> None:
    composed, decomposed = Message("user", "caf\u00e9"), Message("user", "cafe\u0301")
    assert normalised_digest([composed]) == normalised_digest([decomposed])
    assert normalised_digest([Message("system", "a")]) != normalised_digest([Message("user", "a")])
    assert len(normalised_digest([Message("user", "\ud800")])) == 16  # a lone surrogate


def test_the_oldest_prompts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bond_trainer.curation.duplicates.MAX_REMEMBERED", 2)
    rule = DuplicateRule()
    for digest in ("a", "b", "c"):
        rule.remember(digest)
    assert rule.state() == {"known": ["b", "c"]}


def test_templates_are_the_first_words_with_numbers_alike() -> None:
    def of(text: str) -> str:
        return template_of((Message("user", text),))

    assert of("Translate order 12 now please") == of("translate  ORDER 997 now thanks")
    assert of("Translate order 12 now please") == of("Translate order 3 now or never")
    assert of("Translate order 12 now") != of("Translate parcel 12 now")


def shares(max_share: float, window: int, min_rows: int) -> ShareRule:
    return ShareRule(max_share=max_share, window=window, min_rows=min_rows)


def test_shares_go_by_keys_where_they_are_told_to() -> None:
    rule = ShareRule(
        max_share=0.5, window=100, min_rows=1, unit_of=lambda row: row.key, reason="key_share"
    )
    asked_by = "aabaaab"  # a: 1, 2 while it is alone; then at most half of what is taken
    rows = [
        Row(str(i), (Message("user", str(i)),), 5, unit=f"user {i}", key=key)
        for i, key in enumerate(asked_by)
    ]
    refused = [rule.refuse(row) for row in rows]
    assert refused == [None, None, None, "key_share", "key_share", "key_share", None]


def units(rule: ShareRule, asked_by: str) -> str:
    """One row per letter, which names its unit; `+` where it was taken."""
    refused = [rule.refuse(row(n, unit=unit)) for n, unit in enumerate(asked_by)]
    assert set(refused) <= {None, "unit_share"}
    return "".join("-" if reason else "+" for reason in refused)


def test_a_unit_has_at_most_its_share() -> None:
    """Half, rounded up, and from the second unit on: 1, 1, 2 of 3, no 3 of 4, 2 of 4, 3 of 5 …"""
    assert units(shares(0.5, 100, 0), "abaabaacd") == "+++-++-++"


def test_a_single_unit_does_not_starve() -> None:
    assert units(shares(0.2, 100, 0), "a" * 50) == "+" * 50
    assert units(shares(0.2, 100, 0), "abcd" * 10) == "+" * 40  # four cannot each have a fifth


def test_small_logs_have_their_minimum() -> None:
    assert units(shares(0.5, 100, 3), "baaaaa") == "++++--"


def plain_shares(asked_by: str, max_share: Fraction, window: int, min_rows: int) -> str:
    """The rule from its definition, counted anew for every row in whole numbers."""
    taken: list[bool] = []
    for n, unit in enumerate(asked_by):
        last = range(max(0, n - window + 1), n)
        num_units = len({asked_by[i] for i in last} | {unit})
        rows = [asked_by[i] for i in last if taken[i]]
        limit = max(min_rows, math.ceil(max_share * (len(rows) + 1)))
        taken.append(num_units < 1 / max_share or rows.count(unit) + 1 <= limit)
    return "".join("+" if row else "-" for row in taken)


@pytest.mark.parametrize(
    ("max_share", "window", "min_rows"),
    [("1/2", 4, 1), ("1/10", 50, 0), ("1/5", 30, 2), ("3/10", 20, 0), ("1", 9, 0)],
)
def test_shares_over_the_window_as_defined(max_share: str, window: int, min_rows: int) -> None:
    drawn = random.Random(3)
    asked_by = "".join(drawn.choices("abcdefghijkl", [60, 9, 8] + [2] * 9, k=400))
    share = Fraction(max_share)
    found = units(shares(float(share), window, min_rows), asked_by)
    assert found == plain_shares(asked_by, share, window, min_rows)
    assert ("-" in found) == (share < 1)
    of_a = [reason for unit, reason in zip(asked_by, found, strict=True) if unit == "a"]
    assert of_a[-100:].count("+") > 0  # bounded, not shut out


def test_whoever_gives_no_name_is_not_bounded() -> None:
    rule = shares(0.5, 100, 0)
    assert [rule.refuse(row(n, unit="")) for n in range(20)] == [None] * 20


def offer(rule: SpikeRule, texts: list[str]) -> tuple[str, int, int]:
    """Which rows are held (`h`), and how many were released and dropped meanwhile."""
    held, released, dropped = "", 0, 0
    for number, text in enumerate(texts):
        held += "h" if rule.holds(row(number, text, unit="")) else "."
        ended = rule.decide()
        released, dropped = released + len(ended[0]), dropped + len(ended[1])
    return held, released, dropped


def usual(count: int, first: int = 0) -> list[str]:
    """Rows of as many templates."""
    return [f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)} asks" for n in range(first, first + count)]


def flood(count: int) -> list[str]:
    """Rows of one template."""
    return [f"buy {n} of these now: item {n}" for n in range(count)]


def spikes() -> SpikeRule:
    """A quarter of the last eight rows, and four times what it was of the 64 before."""
    return SpikeRule(window=8, min_share=0.25, factor=4.0)


def test_a_burst_is_held_and_dropped() -> None:
    """Its first row is 1/8, its second 2/8; each is decided 32 rows after it came."""
    held, released, dropped = offer(spikes(), usual(64) + flood(6) + usual(31, 64))
    assert held == "." * 65 + "h" * 5 + "." * 31
    assert (released, dropped) == (0, 4)  # the fifth is due with the next row


def test_what_lasts_is_released_and_becomes_usual() -> None:
    """Of 64 earlier rows 16 make a quarter, and then all of the recent ones are no spike: that is
    after 8 rows in the recent window and 17 that left it for the baseline."""
    held, released, dropped = offer(spikes(), usual(72) + flood(80))
    assert held == "." * 73 + "h" * 23 + "." * 56
    assert (released, dropped) == (23, 0)


def test_a_template_that_was_always_there_is_no_spike() -> None:
    assert offer(spikes(), flood(100))[0] == "." * 100


def test_without_earlier_rows_nothing_is_held() -> None:
    """Eight recent rows and seven before them are one too few."""
    assert offer(spikes(), usual(7) + flood(8))[0] == "." * 15
    held = offer(spikes(), usual(14) + flood(8))[0]
    assert held == "." * 15 + "h" * 7


def test_a_unit_can_be_a_spike_whatever_it_asks() -> None:
    rule = spikes()
    offer(rule, usual(72))
    texts = usual(4, 200)
    assert [rule.holds(row(n, t, unit="loud")) for n, t in enumerate(texts)] == [False] + [True] * 3
    assert rule.held_ids == ["row-1", "row-2", "row-3"]
