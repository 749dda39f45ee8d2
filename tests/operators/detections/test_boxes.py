"""Box arithmetic against torchvision and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.detections.boxes import areas, contained, intersections, iou, second_inside, suppress


def random_boxes(count: int, seed: int, size: float = 100) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.random((count, 2)) * size
    return np.concatenate([corner, corner + 1 + rng.random((count, 2)) * size / 2], axis=1).astype(np.float32)


def xywh(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).astype(float)


def test_iou_by_hand() -> None:
    first = np.array([[0, 0, 10, 10]], np.float32)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4]], np.float32)
    np.testing.assert_allclose(iou(first, second), [[1, 1 / 3, 0, 0.04]])
    np.testing.assert_allclose(intersections(first, second), [[100, 50, 0, 4]])
    np.testing.assert_allclose(areas(second), [100, 100, 100, 4])


def test_iou_as_pycocotools_and_torchvision_have_it() -> None:
    import torch
    from pycocotools import mask
    from torchvision.ops import box_iou

    first, second = random_boxes(50, 1), random_boxes(70, 2)
    found = iou(first, second)
    np.testing.assert_allclose(found, mask.iou(xywh(first), xywh(second), np.zeros(70, np.uint8)), atol=1e-5)
    np.testing.assert_allclose(found, box_iou(torch.tensor(first), torch.tensor(second)).numpy(), atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("count", [0, 1, 40, 700])
def test_suppression_as_torchvision_has_it(threshold: float, count: int) -> None:
    import torch
    from torchvision.ops import nms

    boxes, classes = random_boxes(count, count), np.random.default_rng(count).integers(0, 3, count)
    truth = []
    for name in range(3):
        members = np.flatnonzero(classes == name)
        scores = torch.linspace(1, 0, max(len(members), 1))[: len(members)]
        truth += members[nms(torch.tensor(boxes[members]), scores, threshold).numpy()].tolist()
    by, overlap = suppress(boxes, classes, threshold)
    assert np.flatnonzero(by < 0).tolist() == sorted(truth)
    for index in np.flatnonzero(by >= 0):
        assert by[index] < index and by[by[index]] == -1 and classes[by[index]] == classes[index]
        assert overlap[index] > threshold
        assert overlap[index] == pytest.approx(iou(boxes[[by[index]]], boxes[[index]])[0, 0])


def test_suppression_across_classes_leaves_boxes_of_one_class_alone() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 4, np.float32)
    by, _ = suppress(boxes, np.array([0, 0, 1, 0]), 0.5, within=False)
    assert by.tolist() == [-1, -1, 0, -1]


def test_a_box_that_went_suppresses_nobody() -> None:
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
    by, _ = suppress(boxes, np.zeros(3, int), 0.3)
    assert by.tolist() == [-1, 0, -1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(0, 10_000), st.floats(0.1, 1))
def test_containment_as_pycocotools_has_it_for_crowds(count: int, seed: int, threshold: float) -> None:
    from pycocotools import mask

    boxes, classes = random_boxes(count, seed), np.random.default_rng(seed).integers(0, 2, count)
    found = contained(boxes, classes, threshold)
    if not count:
        assert found.tolist() == []
        return
    own_area = mask.iou(xywh(boxes), xywh(boxes), np.ones(count, np.uint8)).T  # with a crowd: over the other's area
    near = np.abs(own_area - threshold) < 1e-5
    area = areas(boxes)
    pairs = (area[None] < area[:, None]) & (classes[None] == classes[:, None])
    assert (found >= (pairs & (own_area > threshold) & ~near).sum(axis=1)).all()
    assert (found <= (pairs & ((own_area > threshold) | near)).sum(axis=1)).all()


def test_boxes_of_one_size_do_not_contain_each_other() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [1, 1, 3, 3], [8, 8, 12, 12]], np.float32)
    assert contained(boxes, np.zeros(4, int), 0.9).tolist() == [1, 1, 0, 0]
    assert contained(boxes, np.array([0, 0, 1, 0]), 0.25).tolist() == [1, 1, 0, 0]


@given(st.integers(0, 600), st.integers(0, 1000), st.sampled_from([0.3, 0.9]))
@settings(max_examples=15, deadline=None)
def test_the_second_inside_is_where_a_box_stops_to_contain_several(count: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes, classes, scores = random_boxes(count, seed), rng.integers(0, 2, count), rng.integers(1, 9, count) / 10
    found = second_inside(boxes, classes, scores, threshold)
    assert found.shape == (count,)
    several = contained(boxes, classes, threshold) >= 2
    np.testing.assert_array_equal(np.isfinite(found), several)
    for score in (0.2, 0.5, 0.8):
        left = np.flatnonzero(scores >= score)
        np.testing.assert_array_equal(contained(boxes[left], classes[left], threshold) >= 2, found[left] >= score)
