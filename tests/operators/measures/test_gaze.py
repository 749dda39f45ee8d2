"""The angle between two gazes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.operators.measures.gaze import angular_error


@pytest.mark.parametrize(
    ("found", "truth", "degrees"),
    [
        ((0, 0), (0, 0), 0),
        ((33, -12), (33, -12), 0),
        ((10, 0), (0, 0), 10),
        ((0, 10), (0, 0), 10),
        ((-20, 0), (20, 0), 40),
        ((180, 0), (0, 0), 180),
        ((150, -20), (-30, 20), 180),
        ((0, 90), (0, -90), 180),
        ((90, 0), (0, 0), 90),
        ((77, 90), (-140, 90), 0),  # straight up, yaw means nothing
        ((360, 0), (0, 0), 0),
        ((90, 45), (0, 45), 60),  # cos² 45° cos 90° + sin² 45° = 1/2
        ((40, 60), (0, 60), np.degrees(np.arccos(0.25 * np.cos(np.radians(40)) + 0.75))),
    ],
)
def test_angles_by_hand(found: tuple[float, float], truth: tuple[float, float], degrees: float) -> None:
    # The arc cosine is exact to about 1e-6 degrees near 0 and 180.
    assert angular_error([found], [truth]) == pytest.approx([degrees], abs=1e-5)


gazes = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


@given(gazes, gazes, gazes)
def test_it_is_a_distance(one: tuple[float, float], other: tuple[float, float], third: tuple[float, float]) -> None:
    ab, ba, bc, ac = angular_error([one, other, other, one], [other, one, third, third])
    assert ab == ba
    assert 0 <= ab <= 180
    assert ac <= ab + bc + 1e-5
    assert angular_error([one], [one]) == pytest.approx([0], abs=1e-5)


@given(st.floats(-90, 90), st.floats(-90, 90))
def test_along_the_horizon_and_the_meridian_it_is_the_difference(one: float, other: float) -> None:
    assert angular_error([[one, 0], [0, one]], [[other, 0], [0, other]]) == pytest.approx(
        [abs(one - other)] * 2, abs=1e-5
    )


def test_shapes() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.uniform(-50, 50, (2, 7, 2)).astype(np.float32)
    errors = angular_error(found, truth)
    assert errors.shape == (7,)
    assert errors.dtype == np.float64
    np.testing.assert_array_equal(errors, angular_error(found.tolist(), [tuple(gaze) for gaze in truth]))
    np.testing.assert_array_equal(errors[2:3], angular_error(found[2], truth[2]))
    np.testing.assert_array_equal(angular_error([[10, 0]], [[0, 0]]), angular_error([[10.0, 0.0]], [[0.0, 0.0]]))
    assert angular_error([], []).shape == angular_error(np.zeros((0, 2)), np.zeros((0, 2))).shape == (0,)
    assert np.isnan(angular_error([[np.nan, 0]], [[0, 0]])).all()


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (2, 3), (0, 1)])
def test_as_many_of_both(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"must be as many but are {counts[0]} and {counts[1]}"):
        angular_error(*(np.zeros((count, 2)) for count in counts))
