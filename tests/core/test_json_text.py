"""JSON in both directions: as the standard library has it, and faster."""

import json
import math
from typing import Any

import pytest

from bond_core.json_text import dump_json, load_json

VALUES: list[Any] = [
    None,
    {"a": [1, 2.5, True, "é \U0001f600"], "b": {"": -0.0}},
    [1e-7, 1e22, 0.1, 2**63 - 1, -(2**63)],
    {"big": 2**70, "in": [10**30]},
    {"half": "\ud800", "é": 1},
    "\u0000\u2028",
    {1: "a", 2: "b"},
]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_dumped_is_what_the_standard_library_loads(value: Any) -> None:
    text = dump_json(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    if "big" not in text:
        assert load_json(text) == load_json(text.encode()) == json.loads(text)
    assert ", " not in text
    text.encode()  # has a form in UTF-8, whatever is in it


@pytest.mark.parametrize("beside", [None, 2**70, "\ud800", {1: (2,)}])
def test_a_number_that_is_not_finite_is_null_whatever_is_beside_it(beside: Any) -> None:
    value = {"a": [math.nan, (math.inf, 0.5)], "b": {"c": -math.inf}, "beside": beside}
    text = dump_json(value)
    assert json.loads(text) == {
        "a": [None, [None, 0.5]],
        "b": {"c": None},
        "beside": json.loads(json.dumps(beside)),
    }


def test_integers_beyond_64_bits_are_read_as_floats() -> None:
    assert load_json(str(2**70)) == 2.0**70


@pytest.mark.parametrize("text", ['{"a": 1e999}', '"\\ud800"'])
def test_what_only_the_standard_library_reads_is_read(text: str) -> None:
    assert load_json(text) == json.loads(text)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[1,]", b"[" * 100_000, "nonsense"])
def test_what_is_no_json_is_a_value_error(text: bytes | str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        load_json(text)
