"""Detections against truth: pycocotools run plainly, cases worked out by hand, and what matching promises."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labelmill.operators.detections.boxes import iou
from labelmill.operators.measures.detections import average_precision, bbox, compare, corners, match

CLASSES = ("car", "bus", "cup", "sign")


def drawn(seed: int, images: int = 6, classes: int = 3) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """True boxes, and found ones: moved copies of most of them, some under another class, and some of nothing."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 8))):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(20, 90, 2)]
            label = {"image_id": image, "category_id": int(rng.integers(1, classes + 1))}
            truth.append({**label, "bbox": box})
            for _ in range(int(rng.integers(0, 3))):
                if rng.random() < 0.15:
                    label["category_id"] = int(rng.integers(1, classes + 1))
                moved = [value + move for value, move in zip(box, rng.normal(0, 6, 4), strict=True)]
                found.append({**label, "bbox": moved, "score": float(rng.random())})
        for _ in range(int(rng.integers(0, 3))):
            label = {"image_id": image, "category_id": int(rng.integers(1, classes + 1))}
            box = [*rng.uniform(0, 200, 2), *rng.uniform(20, 90, 2)]
            found.append({**label, "bbox": box, "score": float(rng.random())})
    return truth, found


def plainly(
    folder: Path, truth: list[dict[str, Any]], found: list[dict[str, Any]], images: int, category: int | None = None
) -> tuple[float, ...]:
    """What pycocotools prints for files on disk, of one class or of all: AP50, AP, AP75, AP by size, AR."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes = [
        {**each, "id": number, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0}
        for number, each in enumerate(truth, 1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    whole = {"images": [{"id": i} for i in range(1, images + 1)], "categories": categories, "annotations": boxes}
    (folder / "truth.json").write_text(json.dumps({"info": {}, **whole}))
    (folder / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        scores = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
        if category is not None:
            scores.params.catIds = [category]
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return tuple(float(scores.stats[place]) for place in (1, 0, 2, 3, 4, 5, 8))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_what_pycocotools_prints(seed: int, tmp_path: Path) -> None:
    truth, found = drawn(seed)
    ours = average_precision(truth, found, range(1, 7), CLASSES)
    assert ours.ap50.shape == ours.ap.shape == (4,)
    assert np.isnan(ours.ap50[3]) and np.isnan(ours.ap[3])  # there is no sign
    figures = (ours.ap50, ours.ap, ours.ap75, ours.small, ours.medium, ours.large, ours.recall)
    printed = plainly(tmp_path, truth, found, 6)
    assert 0 < printed[1] < printed[0] < 0.99
    for each, expected in zip(figures, printed, strict=True):
        assert (np.nanmean(each) if np.isfinite(each).any() else -1) == pytest.approx(expected, abs=1e-12)
    for category in (1, 2, 3):
        expected = plainly(tmp_path, truth, found, 6, category)
        of_class = np.nan_to_num([each[category - 1] for each in figures], nan=-1)
        assert tuple(of_class) == pytest.approx(expected, abs=1e-12)


def label(box: list[float], score: float | None = None, image: int = 1, category: int = 1) -> dict[str, Any]:
    given = {"image_id": image, "category_id": category, "bbox": box}
    return given if score is None else {**given, "score": score}


def test_average_precision_by_hand() -> None:
    truth = [label([0, 0, 10, 10]), label([50, 50, 10, 10])]
    # Right, wrong, right: precision is 1 up to a recall of 0.5 (51 of 101 points), then 2/3.
    found = [label([0, 0, 10, 10], 0.9), label([100, 0, 10, 10], 0.8), label([50, 50, 10, 10], 0.7)]
    scores = average_precision(truth, found, [1], ["car"])
    assert scores.ap50[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores.ap[0] == pytest.approx(scores.ap50[0])
    # An IoU of 0.62 is enough at 0.50, 0.55 and 0.60: three of ten.
    scores = average_precision([label([0, 0, 100, 10])], [label([0, 0, 62, 10], 0.9)], [1], ["car"])
    assert (scores.ap50[0], scores.ap[0]) == pytest.approx((1.0, 0.3))
    # Found twice: the second is wrong, but all is found before it.
    scores = average_precision(truth[:1], [found[0], {**found[0], "score": 0.5}], [1], ["car"])
    assert scores.ap50[0] == pytest.approx(1)


def test_a_class_that_is_not_there_has_no_average_precision() -> None:
    truth, found = [label([0, 0, 10, 10])], [label([0, 0, 10, 10], 0.5, category=2)]
    for scores in (average_precision(truth, found, [1], CLASSES), average_precision(truth, [], [1], CLASSES)):
        for each in (scores.ap50, scores.ap, scores.ap75, scores.small, scores.recall):
            np.testing.assert_array_equal(each, [0, np.nan, np.nan, np.nan])
        assert np.isnan(scores.medium).all() and np.isnan(scores.large).all()
    scores = average_precision([], found, [1], CLASSES)
    assert np.isnan(scores.ap50).all() and np.isnan(scores.ap).all()
    assert np.isnan(average_precision([], [], [], CLASSES).ap).all()


def test_finds_on_an_image_without_objects_count_against() -> None:
    truth = [label([0, 0, 10, 10])]
    found = [label([0, 0, 10, 10], 0.5), label([0, 0, 10, 10], 0.9, image=2)]
    assert average_precision(truth, found, [1, 2], ["car"]).ap50[0] == pytest.approx(0.5)
    assert average_precision(truth, found[:1], [1, 2], ["car"]).ap50[0] == pytest.approx(1)


@pytest.mark.parametrize(("better", "expected"), [(99, 0.01), (100, 0.0)])
def test_the_best_100_of_an_image_count(better: int, expected: float) -> None:
    wrong = [label([100 + 20 * number, 0, 10, 10], 0.9) for number in range(better)]
    found = [label([0, 0, 10, 10], 0.5), *wrong]
    scores = average_precision([label([0, 0, 10, 10])], found, [1], ["car"])
    assert scores.ap50[0] == pytest.approx(expected)


def test_masks_are_compared_where_masks_are_asked_for() -> None:
    from pycocotools import mask

    def rle(pixels: np.ndarray) -> dict[str, Any]:
        return dict(mask.encode(np.asfortranarray(pixels.astype(np.uint8))))

    ring = np.zeros((40, 40), bool)
    ring[5:35, 5:35] = True
    ring[10:30, 10:30] = False
    inside = np.zeros((40, 40), bool)
    inside[10:30, 10:30] = True
    truth = [{**label([5, 5, 30, 30]), "segmentation": rle(ring)}]
    same = [{**label([5, 5, 30, 30], 0.9), "segmentation": rle(ring)}]
    other = [{**label([5, 5, 30, 30], 0.9), "segmentation": rle(inside)}]
    assert average_precision(truth, other, [1], ["car"]).ap[0] == pytest.approx(1)
    assert average_precision(truth, other, [1], ["car"], "segm").ap50[0] == 0
    assert average_precision(truth, same, [1], ["car"], "segm").ap[0] == pytest.approx(1)
    half = ring.copy()
    half[:, 20:] = False  # an IoU of exactly one half
    found = [{**label([5, 5, 30, 30], 0.9), "segmentation": rle(half)}]
    scores = average_precision(truth, found, [1], ["car"], "segm")
    assert (scores.ap50[0], scores.ap[0]) == pytest.approx((1.0, 0.1))


def test_labels_are_not_changed(capfd: pytest.CaptureFixture[str]) -> None:
    truth, found = drawn(1)
    before = copy.deepcopy((truth, found))
    average_precision(truth, found, range(1, 7), CLASSES)
    match(truth, found)
    assert (truth, found) == before
    assert capfd.readouterr().out == ""


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_average_precision_does_not_depend_on_the_order(seed: int, shuffler: Any) -> None:
    truth, found = drawn(seed, images=3)
    first = average_precision(truth, found, range(1, 4), CLASSES)
    shuffler.shuffle(truth)
    shuffler.shuffle(found)
    second = average_precision(truth, found, [3, 1, 2], CLASSES)
    np.testing.assert_allclose(first.ap, second.ap, atol=1e-12)
    np.testing.assert_allclose(first.ap50, second.ap50, atol=1e-12)


corner = st.integers(0, 6)
side = st.integers(1, 4)
boxes = st.tuples(corner, corner, side, side).map(list)
labels = st.builds(
    lambda box, image, category, score: {**label(box, image=image, category=category), "score": score},
    boxes, st.integers(1, 2), st.integers(1, 2), st.sampled_from([0.1, 0.5, 0.9, None]),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(labels, max_size=8), st.lists(labels, max_size=8), st.sampled_from([0.1, 0.5, 0.75, 1.0]))
def test_matching_is_one_to_one_and_best_first(truth: list[Any], found: list[Any], least: float) -> None:
    pairs = match(truth, found, least)
    assert len({pair.found for pair in pairs}) == len({pair.truth for pair in pairs}) == len(pairs)
    by_found, by_truth = {pair.found: pair for pair in pairs}, {pair.truth: pair for pair in pairs}
    overlaps = iou(*(np.array([corners(each["bbox"]) for each in side]).reshape(-1, 4) for side in (found, truth)))
    rank = [(-(1.0 if each["score"] is None else each["score"]), index) for index, each in enumerate(found)]
    for pair in pairs:
        one, other = found[pair.found], truth[pair.truth]
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert pair.iou == overlaps[pair.found, pair.truth] >= least
    for index, each in enumerate(found):
        # What would have been better (or anything, for one that has no partner) went to a better score.
        enough = by_found[index].iou if index in by_found else np.nextafter(least, 0)
        for number, other in enumerate(truth):
            alike = (each["image_id"], each["category_id"]) == (other["image_id"], other["category_id"])
            if alike and overlaps[index, number] > enough:
                assert rank[by_truth[number].found] < rank[index]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_matching_does_not_depend_on_the_order(seed: int, shuffler: Any) -> None:
    truth, found = drawn(seed, images=3)
    assume(truth and found)
    expected = {(pair.found, pair.truth, pair.iou) for pair in match(truth, found)}
    there, seen = list(range(len(truth))), list(range(len(found)))
    shuffler.shuffle(there)
    shuffler.shuffle(seen)
    pairs = match([truth[i] for i in there], [found[i] for i in seen])
    assert {(seen[pair.found], there[pair.truth], pair.iou) for pair in pairs} == expected
    scores = [found[seen[pair.found]]["score"] for pair in pairs]
    assert scores == sorted(scores, reverse=True)


def test_matching_by_hand() -> None:
    truth = [label([0, 0, 10, 10]), label([6, 0, 10, 10])]
    found = [label([5, 0, 10, 10], 0.6), label([6, 0, 10, 10], 0.9)]
    (pair,) = match(truth, found)  # the better takes its own; the other is left with an IoU of 1/3
    assert (pair.found, pair.truth, pair.iou) == (1, 1, 1.0)
    assert [(pair.found, pair.truth) for pair in match(truth, found, 1 / 3)] == [(1, 1), (0, 0)]
    (pair,) = match([label([0, 0, 10, 10])], [label([0, 0, 5, 10], 0.1)])  # exactly 0.5
    assert pair.iou == 0.5
    assert [pair.found for pair in match(truth[:1], [label([0, 0, 10, 10], 0.99), label([0, 0, 10, 10])])] == [1]
    assert match([], found) == match(truth, []) == []


def test_what_lies_in_a_region_to_ignore_is_neither_right_nor_wrong() -> None:
    crowd = {**label([50, 0, 40, 40]), "iscrowd": 1}
    truth = [label([0, 0, 10, 10]), crowd]
    found = [
        label([0, 0, 10, 10], 0.5),  # right
        label([60, 10, 5, 5], 0.9),  # in the region, as small as it is
        label([45, 0, 10, 10], 0.9),  # half of it in the region, which is enough
        label([44, 0, 10, 10], 0.9),  # less than half
        label([60, 10, 5, 5], 0.9, category=2),  # another class
        label([60, 10, 5, 5], 0.9, image=2),  # another image
        label([50, 0, 40, 40], 0.9),  # the region itself
    ]
    compared = compare(truth, found)
    assert (compared.objects, compared.labels) == (1, 4)
    assert [(pair.found, pair.truth) for pair in compared.pairs] == [(0, 0)]
    assert compared.ignored == {1, 2, 6}
    # An object in the region is an object: who finds it is right.
    both = compare([crowd, label([60, 10, 5, 5])], found[1:2])
    assert (both.objects, both.labels, len(both.pairs), both.ignored) == (1, 1, 1, frozenset())
    assert compare([crowd], []).objects == 0


def test_a_class_of_regions_to_ignore_only_has_no_average_precision() -> None:
    crowd = {**label([0, 0, 10, 10]), "iscrowd": 1}
    for found in ([], [label([0, 0, 5, 5], 0.9)]):
        scores = average_precision([crowd], found, [1], ["car"])
        assert np.isnan([scores.ap[0], scores.ap50[0], scores.small[0], scores.recall[0]]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_regions_to_ignore_never_make_a_right_label_wrong(seed: int) -> None:
    truth, found = drawn(seed, images=2)
    crowds = [{**each, "iscrowd": 1} for each in truth[::3]]
    objects = [each for place, each in enumerate(truth) if place % 3]
    plain, compared = compare(objects, found), compare([*objects, *crowds], found)
    assert compared.pairs == plain.pairs
    assert compared.objects == plain.objects == len(objects)
    assert compared.labels == len(found) - len(compared.ignored)
    assert not compared.ignored & {pair.found for pair in compared.pairs}


@given(*[st.floats(-1e6, 1e6)] * 4)
def test_corners_and_back(x1: float, y1: float, x2: float, y2: float) -> None:
    assert corners(bbox(x1, y1, x2, y2)) == pytest.approx((x1, y1, x2, y2), abs=1e-6)
    assert bbox(1, 2, 11, 7) == [1, 2, 10, 5]
