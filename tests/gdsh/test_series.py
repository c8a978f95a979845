"""Series encoding against the formulas, stated here once more in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.series import (
    MARKER,
    PATCH_TOKEN,
    SeriesError,
    as_series,
    describe,
    encode,
    expand,
    patch_count,
    refuse_encoded,
    scale,
)


def stated(values: list[float]) -> tuple[list[float], str]:
    """The scaled points and the text, point by point."""
    mean = float(np.mean(np.array(values)))
    points = [value - mean for value in values]
    scaling = 1.0
    if any(abs(point) >= 3.0 for point in points):
        scaling = max(abs(point) for point in points) / 3.0
        points = [point / scaling for point in points]
    text = "[" + "|".join(
        [
            f"offset={-mean:.4f}",
            f"scaling={scaling:.4f}",
            f"length={len(values)}",
            f"max={max(values):.4f}",
            f"min={min(values):.4f}",
            f"left={values[0]:.4f}",
            f"right={values[-1]:.4f}",
        ]
    )
    return points, text + "]"


def half(value: float) -> np.float16:
    """float64 to float16 as torch rounds it: through float32."""
    return np.float16(np.float32(value))


@st.composite
def long_series(draw: st.DrawFn) -> list[float]:
    """Up to 9000 points of one of the shapes that records have."""
    length = draw(st.integers(1, 9000))
    size = draw(st.sampled_from([1e-30, 1e-3, 1.0, 100.0, 1e30]))
    level = draw(st.sampled_from([0.0, -0.0, 1.0, -273.15, 1e6, -1e30, 1e-30]))
    shape = draw(st.sampled_from(["constant", "noise", "walk", "integers", "steps"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if shape == "constant":
        return [level] * length
    noise = rng.standard_normal(length)
    points = {
        "noise": noise,
        "walk": noise.cumsum(),
        "integers": np.round(10 * noise),
        "steps": np.where(noise > 0, 0.0, -0.0),
    }[shape]
    values: list[float] = (points * size + level).tolist() if shape != "steps" else points.tolist()
    return values


finite = st.floats(-1e30, 1e30, allow_nan=False) | st.floats(-4, 4) | st.floats(-1e-30, 1e-30)
any_series = st.lists(finite, min_size=1, max_size=50) | long_series()


@settings(deadline=None, max_examples=150)
@given(any_series)
def test_text_and_points_are_the_stated_ones(values):
    points, text = stated(values)
    series = as_series(values)
    scaled, offset, scaling = scale(series)
    assert describe(series) == text
    assert scaled.tolist() == points
    assert f"[offset={offset:.4f}|scaling={scaling:.4f}|" in text
    assert series.tolist() == values, "the raw series is left as it was"


@settings(deadline=None, max_examples=60)
@given(st.lists(any_series, min_size=1, max_size=4))
def test_tensor_is_the_stated_one(batch):
    tensor = encode(batch)
    longest = max(map(len, batch))
    assert tensor.dtype == np.float16
    assert tensor.shape == (len(batch), 2 * longest, 1)
    for row, values in zip(tensor, batch, strict=True):
        expected: list[float] = []
        for point in stated(values)[0]:
            expected += [float(half(point)), 1.0]
        expected += [0.0] * (2 * (longest - len(values)))
        assert row[:, 0].tolist() == expected


@settings(deadline=None, max_examples=60)
@given(any_series)
def test_scaled_points_fit_float16(values):
    tensor = encode([values]).reshape(-1, 2)
    assert np.isfinite(tensor).all()
    assert (np.abs(tensor[:, 0]) <= 3).all()
    assert (tensor[:, 1] == 1).all()


def test_known_series():
    series = as_series([1, 2, 3, 10])
    assert describe(series) == (
        "[offset=-4.0000|scaling=2.0000|length=4|max=10.0000|min=1.0000|left=1.0000|right=10.0000]"
    )
    assert encode([[1, 2, 3, 10]])[0, :, 0].tolist() == [-1.5, 1, -1, 1, -0.5, 1, 3, 1]


@pytest.mark.parametrize("values", [[2.9, -2.9], [0.1, 0.2], [1e6 + 1, 1e6 - 1]])
def test_no_scaling_within_three_of_the_mean(values):
    assert scale(as_series(values))[2] == 1.0


@pytest.mark.parametrize("peak", [3.0, 3.02, 3.5, 1e4])
def test_scaling_from_three_on(peak):
    scaled, _, scaling = scale(as_series([peak, -peak]))
    assert scaling == peak / 3
    assert scaled.tolist() == pytest.approx([3, -3])


@pytest.mark.parametrize("values", [[-0.0, 0.0], [0.0, -0.0], [0.0] * 9 + [-0.0] * 9, [-0.0] * 9 + [0.0] * 9])
def test_sign_of_zero_is_that_of_the_first(values):
    assert describe(as_series(values)) == stated(values)[1]


def test_half_is_rounded_by_way_of_float32():
    value = 1 + 2**-11 + 2**-40  # straight to float16 it would round up, to 1 + 2**-10
    assert encode([[value, -value]])[0, :, 0].tolist() == [1.0, 1.0, -1.0, 1.0]


def test_no_series_gives_an_empty_tensor():
    assert encode([]).shape == (0, 0, 1)


@pytest.mark.parametrize(
    ("length", "size", "count"),
    [(1, 8, 1), (7, 8, 1), (8, 8, 1), (9, 8, 2), (16, 16, 1), (17, 16, 2), (5000, 8, 625), (5001, 16, 313)],
)
def test_one_token_a_patch(length, size, count):
    assert patch_count(length, size) == count
    series = as_series(np.arange(length))
    assert expand(series, size) == describe(series) + PATCH_TOKEN * count


def test_marker_begins_with_the_patch_token():
    assert MARKER.startswith(PATCH_TOKEN)


@pytest.mark.parametrize("values", [(1, 2.5), np.array([1, 2], dtype=np.int64), np.array([1, 2], dtype=np.float32)])
def test_other_containers_of_numbers(values):
    series = as_series(values)
    assert series.dtype == np.float64
    assert series.tolist() == [float(value) for value in values]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("nan"), 2.0], r"1 values that are not finite numbers, the first at index 1; .*interpolate"),
        ([1.0, 2.0, float("inf"), float("-inf")], r"2 values that are not finite numbers, the first at index 2"),
        ([None, 1.0], r"1 values that are not finite numbers, the first at index 0"),
        (None, r"shape \[\]; expected one list of numbers"),
        ([], r"without points; expected at least one"),
        ([[1.0, 2.0], [3.0, 4.0]], r"shape \[2, 2\]; expected one list of numbers"),
        ([[1.0, 2.0], [3.0]], r"not a list of numbers \(.*\); expected e\.g\."),
        (["a", "b"], r"not a list of numbers \(.*'a'.*\); expected e\.g\."),
        ("1.5", r"shape \[\]; expected one list of numbers"),
        ({"t": 1}, r"not a list of numbers \(.*\); expected e\.g\."),
        ([1.0, 10**400], r"not a list of numbers \(.*too large.*\); expected e\.g\."),
    ],
)
def test_what_is_no_series_is_named(values, message):
    with pytest.raises(SeriesError, match=message):
        as_series(values)
    with pytest.raises(SeriesError, match=message):
        encode([[1.0, 2.0], values])


@pytest.mark.parametrize("values", [[1e308, 1e308, 1e308], [1.7e308, -1.7e308, -1.7e308]])
def test_overflow_is_named(values):
    series = as_series(values)
    for use in (scale, describe, lambda x: encode([x]), lambda x: expand(x, 8)):
        with pytest.raises(SeriesError, match=r"mean or range overflows; expected numbers well below 1e308"):
            use(series)


def encoded(*values: float, filled: int = 0) -> np.ndarray:
    """Values and mask in turn, as `encode` gives them, and zeros behind them."""
    return np.array([number for value in values for number in (value, 1)] + [0, 0] * filled, dtype=np.float64)


@pytest.mark.parametrize(
    ("numbers", "refused"),
    [
        (encoded(1, 2, 3, 0.5), True),
        (encoded(1, 2, 3), False),  # six numbers may be anything
        (encoded(1, 2, 3, 0.5)[:-1], False),
        (encoded(1, 2, 3, filled=1), False),  # three points and a mask
        (encoded(1, 2, 3, 0.5, filled=2), True),
        (encoded(3.01, -3.01, 0, 0), True),
        (encoded(3.02, -3, 0, 0), False),
        (encoded(1, 2, 1, 2), False),  # two values alone: a switch beside a constant
        (encoded(1, 2, 0, 2), True),
        (np.array([1, 1, 2, 1, 3, 0, 0.5, 1]), False),
        (np.array([1, 1, 2, 1, 3, 1, 0.5, 1, 7, 0]), False),
        (np.array([1, 1, 2, 1, 3, 1, 0.5, 1, 0, 0.5]), False),
    ],
)
def test_what_the_processor_gives_is_told_from_what_was_measured(numbers, refused):
    if not refused:
        refuse_encoded(numbers)
        return
    with pytest.raises(SeriesError, match=f"found a series of {len(numbers)} numbers of which every second one is 1"):
        refuse_encoded(numbers)
