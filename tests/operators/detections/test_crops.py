from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labelmill.operators.detections.crops import GREY, box_array, crop, usable

PIXELS = np.random.default_rng(0).integers(0, 200, (60, 80, 3), dtype=np.uint8)
sides = st.tuples(*[st.floats(-20, 100)] * 4)


@given(sides, st.floats(0, 1))
def test_a_crop_shows_the_box_and_its_margin_and_nothing_beyond_the_image(
    box: tuple[float, ...], margin: float
) -> None:
    x1, y1, x2, y2 = box
    shows = min(x2, 80) > max(x1, 0) and min(y2, 60) > max(y1, 0)
    assert usable(np.array([box]), 80, 60).tolist() == [shows]
    if not shows:
        return
    plain, square = crop(PIXELS, box, margin), crop(PIXELS, box, margin, square=True)
    around = margin * max(x2 - x1, y2 - y1)
    low, high = [max(0, x1 - around), max(0, y1 - around)], [min(80, x2 + around), min(60, y2 + around)]
    for axis, length in ((0, plain.shape[1]), (1, plain.shape[0])):
        assert 0 < high[axis] - low[axis] <= length < high[axis] - low[axis] + 2
    side = max(plain.shape[:2])
    assert square.shape == (side, side, 3)
    filled = (square == GREY).all(axis=2)
    assert filled.sum() == side * side - plain.shape[0] * plain.shape[1] + (plain == GREY).all(axis=2).sum()
    np.testing.assert_array_equal(square[~filled], plain[~(plain == GREY).all(axis=2)])


def test_boxes_that_show_nothing() -> None:
    nothing = [[np.nan, 0, 5, 5], [0, 0, np.inf, 5], [5, 5, 5, 9], [9, 0, 3, 4], [80, 0, 90, 9], [-9, 0, 0, 9]]
    assert not usable(np.array(nothing), 80, 60).any()


def test_boxes_of_detections() -> None:
    found = box_array([{"x1": 1, "y1": 2, "x2": 3, "y2": None}])
    assert found[0, :3].tolist() == [1, 2, 3] and np.isnan(found[0, 3])
    assert box_array([]).shape == (0, 4)
