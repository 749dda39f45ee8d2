from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from labelmill.pipelines.exports.masks import MaskError, joined_polygon, outline, read_mask
from tests.pipelines.exports.scenes import disc, ring, rle


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def filled(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    drawn = np.zeros(shape, np.uint8)
    cv2.fillPoly(drawn, [polygon.astype(np.int32)], 1)
    return drawn > 0


def joined(mask: np.ndarray) -> np.ndarray:
    return filled(joined_polygon(read_mask(rle(mask), *mask.shape)), mask.shape)


def outlined(mask: np.ndarray) -> np.ndarray | None:
    points = outline(read_mask(rle(mask), *mask.shape))
    if points is None:
        return None
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points], *mask.shape)))) > 0


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_mask_is_read_as_pycocotools_reads_it(mask: np.ndarray) -> None:
    known = read_mask(rle(mask), *mask.shape)
    assert known.area == mask.sum()
    if known.area:
        crop, left, top = known.crop()
        whole = np.zeros(mask.shape, bool)
        whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert np.array_equal(whole, mask)
        assert crop[:, [0, -1]].any(0).all()
        assert crop[[0, -1]].any(1).all()


def test_a_large_mask_has_runs_of_several_digits() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[100:2900, 37:3999] = True
    assert read_mask(rle(mask), 3000, 4000).area == 2800 * 3962


@pytest.mark.parametrize("shape", [(10, 11), (11, 12), (5, 5), (100, 100)])
def test_a_mask_of_another_size_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(MaskError, match="another size than the image"):
        read_mask(rle(disc(10, 12, 5, 5, 3)), *shape)


@pytest.mark.parametrize("counts", ["", "é", "\n", "P", "oooooo", "O1", "o" * 40 + "0", "[1, 2]", "猫"])
def test_what_is_no_mask_is_refused(counts: str) -> None:
    with pytest.raises(MaskError, match=r"not compressed RLE|another size"):
        read_mask(counts, 10, 12)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12), st.integers(1, 20), st.integers(1, 20))
def test_any_text_is_a_mask_of_that_size_or_refused(counts: str, height: int, width: int) -> None:
    try:
        mask = read_mask(counts, height, width)
    except MaskError:
        return
    decoded = coco_mask.decode({"size": [height, width], "counts": counts})
    assert decoded.shape == (height, width)
    assert int(decoded.sum()) == mask.area


TURN = np.arange(10) * np.pi / 5
STAR = np.tile([90, 30], 5)
SHAPES = {
    "disc": disc(200, 300, 100, 90, 60),
    "small disc": disc(40, 50, 20, 20, 6),
    "pixel": disc(5, 7, 3, 2, 0),
    "row": np.pad(np.ones((1, 20), bool), 4),
    "column": np.pad(np.ones((20, 1), bool), 4),
    "diagonal": np.pad(np.eye(12, dtype=bool), 3),
    "whole image": np.ones((30, 40), bool),
    "image of one pixel": np.ones((1, 1), bool),
    "corner missing": np.array([[0, 1, 1], [1, 1, 1], [1, 1, 1]], bool),
    "triangle": np.tri(80, 80, dtype=bool),
    "star": filled(np.stack([150 + STAR * np.cos(TURN), 120 + STAR * np.sin(TURN)], 1), (240, 300)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_one_part_without_holes_comes_back_in_both_formats(name: str) -> None:
    mask = SHAPES[name]
    assert iou(joined(mask), mask) >= 0.99
    drawn = outlined(mask)
    assert drawn is not None
    assert iou(drawn, mask) >= 0.99


def test_an_outline_reaches_as_far_as_the_mask() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:33] = True
    points = np.array(outline(read_mask(rle(mask), 40, 50))).reshape(-1, 2)
    assert points.min(0).tolist() == [5, 10]
    assert points.max(0).tolist() == [33, 20]
    assert cv2.contourArea(points.astype(np.float32)) == mask.sum()


def test_an_outline_is_simplified() -> None:
    assert len(outline(read_mask(rle(SHAPES["disc"]), 200, 300)) or []) < 200


def test_what_needs_more_than_one_polygon_has_no_outline() -> None:
    assert outlined(ring(60, 60, 30, 30, 20, 8)) is None
    assert outlined(disc(60, 60, 15, 15, 8) | disc(60, 60, 40, 40, 8)) is None


def test_a_hole_stays_a_hole() -> None:
    mask = ring(200, 200, 100, 100, 60, 25)
    drawn = joined(mask)
    assert not drawn[100, 100]
    assert iou(drawn, mask) >= 0.99


def test_two_parts_are_joined_by_a_thin_bridge() -> None:
    mask = disc(200, 400, 80, 100, 50) | disc(200, 400, 300, 100, 40)
    drawn = joined(mask)
    assert iou(drawn, mask) >= 0.98
    assert cv2.connectedComponents(drawn.astype(np.uint8))[0] == 2
    assert drawn[:, 190].sum() == 1


def test_a_speck_smaller_than_its_bridge_is_left_out() -> None:
    mask = disc(200, 400, 80, 100, 50)
    drawn = joined(mask | disc(200, 400, 390, 10, 2))
    assert iou(drawn, mask) >= 0.99
    assert not drawn[:, 200:].any()


def test_parts_holes_and_islands_together_beat_the_largest_part() -> None:
    mask = np.zeros((300, 640), bool)
    for index in range(6):
        mask |= ring(300, 640, 60 + 90 * index, 100 + 40 * (index % 3), 30, 12)
    mask |= disc(300, 640, 60, 100, 5)
    assert iou(joined(mask), mask) >= 0.97


def test_noise_is_joined_in_part_and_better_than_filled() -> None:
    mask = np.random.default_rng(0).random((120, 120)) > 0.5
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = filled(max(contours, key=cv2.contourArea), mask.shape)
    assert iou(joined(mask), mask) > iou(largest, mask) + 0.1


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 16), st.integers(1, 16))).filter(lambda mask: mask.any()))
def test_any_mask_has_a_polygon_of_three_points_inside_its_box(mask: np.ndarray) -> None:
    polygon = joined_polygon(read_mask(rle(mask), *mask.shape))
    assert len(polygon) >= 3
    rows, columns = np.nonzero(mask)
    assert polygon[:, 0].min() >= columns.min()
    assert polygon[:, 0].max() <= columns.max()
    assert polygon[:, 1].min() >= rows.min()
    assert polygon[:, 1].max() <= rows.max()
    drawn = outlined(mask)
    assert drawn is None or iou(drawn, mask) >= 0.99
