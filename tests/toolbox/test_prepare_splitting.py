"""Training and validation never share a series, and the choice hangs on nothing but series and seed."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.toolbox.prepare.splitting import Keys, _mix, choose_validation, series_keys


names = st.integers(0, 25).map(lambda number: 0x9E3779B97F4A7C15 * (number + 1) % 2**64)
data_sets = st.lists(st.lists(names, min_size=1, max_size=3).map(tuple), min_size=1, max_size=30)
fractions = st.floats(0.01, 0.99)


def choose(records: list[tuple[int, ...]], fraction: float, seed: int) -> tuple[list[bool], int]:
    """With types that follow from the series, so that they, too, are the same in any order."""
    keys = [np.array(record, dtype=np.uint64) for record in records]
    return choose_validation(keys, ["abc"[: min(record) % 4] for record in records], fraction, seed)


def units(records: list[tuple[int, ...]]) -> list[set[int]]:
    """Series that are connected by records, found by joining sets until nothing changes."""
    found = [set(record) for record in records]
    while True:
        for one in found:
            other = next((group for group in found if group is not one and group & one), None)
            if other is not None:
                one |= other
                found = [group for group in found if group is not other]
                break
        else:
            return found


@given(data_sets, fractions, st.integers())
def test_sides_share_no_series_and_have_the_right_size(
    records: list[tuple[int, ...]], fraction: float, seed: int
) -> None:
    validates, groups_told = choose(records, fraction, seed)
    apart = {name for record, side in zip(records, validates, strict=True) if side for name in record}
    rest = {name for record, side in zip(records, validates, strict=True) if not side for name in record}
    assert not apart & rest
    groups = units(records)
    assert groups_told == len(groups)
    wanted = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    assert sum(group <= apart for group in groups) == wanted


@given(data_sets, fractions, st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_of_records_plays_no_part(
    records: list[tuple[int, ...]], fraction: float, seed: int, rng: random.Random
) -> None:
    before = dict(zip(records, choose(records, fraction, seed)[0], strict=True))
    shuffled = records.copy()
    rng.shuffle(shuffled)
    assert dict(zip(shuffled, choose(shuffled, fraction, seed)[0], strict=True)) == before


def test_another_seed_chooses_others() -> None:
    records = [(number * 0x9E3779B97F4A7C15 % 2**64,) for number in range(1, 101)]
    choices = {tuple(choose(records, 0.1, seed)[0]) for seed in range(5)}
    assert len(choices) == 5
    assert all(sum(choice) == 10 for choice in choices)


def share_of_validation(kinds: list[list[str]], fraction: float, seed: int = 0) -> Counter[str]:
    keys = [np.array([number * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64) for number in range(1, len(kinds) + 1)]
    validates, _ = choose_validation(keys, kinds, fraction, seed)
    return Counter(kind for one, apart in zip(kinds, validates, strict=True) if apart for kind in one)


@pytest.mark.parametrize("seed", range(5))
def test_types_are_spread_over_both_sides(seed: int) -> None:
    """Twenty of a rare type: by series alone, some seed puts most of them aside."""
    kinds = [["rare"] for _ in range(20)] + [["common"] * (place % 3) for place in range(180)]
    assert share_of_validation(kinds, 0.1, seed)["rare"] == 2
    # Fourteen of the twenty are one series': it is for training, and others stand for the type in validation.
    kinds = [["rare"] * 14, *[["rare"] for _ in range(6)], *[["common"] for _ in range(33)]]
    assert 1 <= share_of_validation(kinds, 0.1, seed)["rare"] <= 3
    # A type that a single series has is for training; one that two have is on both sides.
    kinds = [["single"], ["double"], ["double"], *[["common"] for _ in range(37)]]
    assert share_of_validation(kinds, 0.2, seed) == {"double": 1, "common": 7}


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), min_size=10, max_size=60), st.integers(0, 99))
def test_shares_of_types_are_near_the_fraction(kinds: list[list[str]], seed: int) -> None:
    fraction, total = 0.25, Counter(kind for one in kinds for kind in one)
    found = share_of_validation(kinds, fraction, seed)
    for kind in total:
        if sum(kind in one for one in kinds) > 1:
            most = max(one.count(kind) for one in kinds)
            assert abs(found[kind] - max(1, fraction * total[kind])) <= 3 * most + 2


@given(st.integers(0, 2**32 - 1), st.integers(64, 300), st.integers(0, 200), st.booleans())
def test_windows_that_share_64_values_share_a_key(seed: int, length: int, shift: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.normal(size=700).round(2)
    if flat:
        whole[rng.integers(0, 600) :][:20] = 0.0
    one, other = whole[100 : 100 + length], whole[100 + shift : 100 + shift + length]
    common = set(series_keys(one).tolist()) & set(series_keys(other).tolist())
    if length - shift >= 64:
        assert common
    if shift > length and not flat:
        assert not common


def test_flat_stretches_connect_nothing() -> None:
    rng = np.random.default_rng(0)
    two: list[Keys] = []
    for _ in range(2):
        values = rng.normal(size=500)
        values[100:400] = 0.0
        two.append(series_keys(values))
    assert not set(two[0].tolist()) & set(two[1].tolist())
    assert series_keys(np.zeros(9)).tolist() == series_keys(-np.zeros(9)).tolist()


@pytest.mark.parametrize("distinct", [7, 8])
def test_stretches_of_eight_values_or_more_make_keys(distinct: int) -> None:
    """Fewer are alike in series that have nothing to do with each other."""
    stretch = np.tile(np.arange(distinct, dtype=float), 40)
    one, other = (np.concatenate([[start], stretch]) for start in (100.0, 200.0))
    shared = np.intersect1d(series_keys(one), series_keys(other))
    assert (len(shared) > 0) == (distinct == 8)


def test_bits_are_mixed_as_in_splitmix64() -> None:
    """The first numbers for the seed 1234567, which are listed at rosettacode.org/wiki/Pseudo-random_numbers."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + turn * 0x9E3779B97F4A7C15) % 2**64 for turn in range(1, 5)]
    assert _mix(np.array(states, dtype=np.uint64)).tolist() == published


def test_64_values_in_a_row_are_enough_and_31_are_known_as_a_whole_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        shared, rest = rng.normal(size=64), rng.normal(size=(4, 80))
        one, other = (np.concatenate([rest[turn], shared, rest[turn + 1]]) for turn in (0, 2))
        assert np.intersect1d(series_keys(one), series_keys(other)).size
    values = rng.normal(size=32)
    assert [len(series_keys(values[:length])) for length in (1, 31, 32)] == [1, 1, 2]


def test_a_seed_may_have_any_number_of_digits() -> None:
    records = [(number,) for number in range(1, 9)]
    assert sum(choose(records, 0.25, -(10**99))[0]) == 2


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_exact_where_they_can_be(seed: int) -> None:
    """Many units a side, each with one type, or with several anomalies of one: a quarter of everything is possible."""
    kinds = [["a"]] * 16 + [["b"]] * 64 + [["c", "c"]] * 64 + [[]] * 256
    assert share_of_validation(kinds, 0.25, seed) == {"a": 4, "b": 16, "c": 32}
    # Mixed units: the sum counts, as well as how many series have any.
    kinds = [["a", "b"]] * 16 + [["a"]] * 16 + [["b"]] * 16 + [["a", "a", "b"]] * 16
    found = share_of_validation(kinds, 0.25, seed)
    assert abs(found["a"] - 16) <= 1 and abs(found["b"] - 12) <= 1


def test_a_single_series_apart_is_one_whose_type_stays_on_both_sides() -> None:
    kinds = [[f"only {place}"] for place in range(8)] + [["double"], ["double"]]
    for seed in range(5):
        assert share_of_validation(kinds, 0.1, seed) == {"double": 1}
        most = [["double"], ["double"], *[["common"]] * 38]
        assert share_of_validation(most, 0.9, seed) == {"double": 1, "common": 35}
        assert share_of_validation([[], [], ["a", "a"], ["a", "a"]], 0.5, seed) == {"a": 2}
