"""Token ids and log-probabilities as bytes, exactly."""

import pytest

from bond_core.store.packing import pack_ids, pack_tokens, unpack_ids, unpack_tokens


def test_ids_round_trip_over_the_whole_range() -> None:
    ids = (0, 1, 65_536, 2**32 - 1)
    assert unpack_ids(pack_ids(ids)) == ids
    assert len(pack_ids(ids)) == 16


@pytest.mark.parametrize("outside", [-1, 2**32])
def test_ids_outside_the_range_are_refused(outside: int) -> None:
    with pytest.raises(OverflowError):
        pack_ids([outside])


def test_float32_values_take_four_bytes_each_and_others_eight() -> None:
    single = (-0.25, -1.5)
    double = (-0.1, -1.5)
    assert len(pack_tokens([((7, 8), single)])) == 1 + 9 + 2 * 4 + 2 * 4
    assert len(pack_tokens([((7, 8), double)])) == 1 + 9 + 2 * 4 + 2 * 8
    assert unpack_tokens(pack_tokens([((7, 8), single)])) == [((7, 8), single)]
    assert unpack_tokens(pack_tokens([((7, 8), double)])) == [((7, 8), double)]


def test_candidates_of_different_lengths_keep_their_places() -> None:
    candidates = [((), ()), ((5,), (-0.3,)), ((5, 6, 7), (-1.0, -2.0, -3e-40)), ((9,), ())]
    assert unpack_tokens(pack_tokens(candidates)) == candidates


def test_extreme_log_probabilities_survive() -> None:
    candidates = [((1, 2, 3), (float("-inf"), -1e300, -5e-324))]
    assert unpack_tokens(pack_tokens(candidates)) == candidates


def test_an_unknown_format_is_refused() -> None:
    packed = b"\x09" + pack_tokens([((1,), (-1.0,))])[1:]
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        unpack_tokens(packed)


def test_the_byte_order_is_fixed() -> None:
    assert pack_ids([1]) == b"\x01\x00\x00\x00"
    assert pack_tokens([((1,), (-1.0,))])[-4:] == b"\x00\x00\x80\xbf"
