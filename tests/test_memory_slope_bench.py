"""The arithmetic of bench/memory_slope.py, and that its prompts differ."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from load import LoadClient
from memory_slope import request_of, slope


def test_the_slope_of_a_line_is_exact() -> None:
    assert slope([(float(x), 3.0 + 0.25 * x) for x in range(5)]) == (0.25, 0.0)


def test_its_standard_error_is_that_of_least_squares() -> None:
    # residuals 1/3, -2/3, 1/3 around 2/3 + x/2: their squares sum to 2/3, with one degree of
    # freedom, and those of x about its mean to 2
    grown, error = slope([(0.0, 1.0), (1.0, 0.5), (2.0, 2.0)])
    assert grown == pytest.approx(0.5)
    assert error == pytest.approx((2 / 3 / 1 / 2) ** 0.5)


def test_no_two_prompts_are_alike() -> None:
    client = LoadClient("127.0.0.1", 1)
    made = [request_of(client, number) for number in range(200)]
    assert len(set(made)) == 200
    assert sum(b"/v1/best-of-n" in request for request in made) == 50
