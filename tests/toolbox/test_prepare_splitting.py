"""Training and validation never share a series, and the choice hangs on nothing but series and seed."""

import random

from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.toolbox.prepare.splitting import choose_validation


names = st.integers(0, 25).map(lambda number: bytes([65 + number]) * 16)
data_sets = st.lists(st.lists(names, min_size=1, max_size=3).map(tuple), min_size=1, max_size=30)
fractions = st.floats(0.01, 0.99)


def units(records: list[tuple[bytes, ...]]) -> list[set[bytes]]:
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
    records: list[tuple[bytes, ...]], fraction: float, seed: int
) -> None:
    validates = choose_validation(records, fraction, seed)
    apart = {name for record, side in zip(records, validates, strict=True) if side for name in record}
    rest = {name for record, side in zip(records, validates, strict=True) if not side for name in record}
    assert not apart & rest
    groups = units(records)
    wanted = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    assert sum(group <= apart for group in groups) == wanted


@given(data_sets, fractions, st.integers(0, 5), st.randoms(use_true_random=False))
def test_order_of_records_plays_no_part(
    records: list[tuple[bytes, ...]], fraction: float, seed: int, rng: random.Random
) -> None:
    before = dict(zip(records, choose_validation(records, fraction, seed), strict=True))
    shuffled = records.copy()
    rng.shuffle(shuffled)
    assert dict(zip(shuffled, choose_validation(shuffled, fraction, seed), strict=True)) == before


def test_another_seed_chooses_others() -> None:
    records = [(bytes([number]) * 16,) for number in range(100)]
    choices = {tuple(choose_validation(records, 0.1, seed)) for seed in range(5)}
    assert len(choices) == 5
    assert all(sum(choice) == 10 for choice in choices)
