"""The plan against the count of what is alive, 4 layers deep, within three per cent; `make bench`: 48."""

import count
import pytest


CASES = {name: rest for name, *rest in count.standard_cases(layers=(4,))}


@pytest.mark.parametrize("case", CASES)
def test_plan_is_what_was_counted(case: str) -> None:
    shape, settings, load = CASES[case]
    plan, counted, parts = count.compare(shape, settings, load)
    assert plan == pytest.approx(counted, rel=count.MOST_OFF)
    assert counted > 100, "something was counted"
    for name, planned, found in parts:
        if name in count._STAY:
            assert planned == pytest.approx(found, rel=0.01), name
