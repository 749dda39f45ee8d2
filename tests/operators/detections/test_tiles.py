"""Tiles of large images, and what becomes of objects at their borders."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.detections.tiles import Tiles, merge

sizes = st.tuples(st.integers(1, 900), st.integers(1, 700))
cuts = st.builds(Tiles, size=st.integers(32, 300), overlap=st.floats(0, 0.9), whole=st.booleans())


@given(sizes, cuts)
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_image_and_overlap_as_asked(size: tuple[int, int], tiles: Tiles) -> None:
    width, height = size
    windows = tiles.windows(width, height)
    if max(size) <= tiles.size:
        assert windows.tolist() == [[0, 0, width, height]]
        return
    if tiles.whole:
        assert windows[0].tolist() == [0, 0, width, height]
        windows = windows[1:]
    seen = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in windows.tolist():
        assert right - left == min(tiles.size, width)
        assert bottom - top == min(tiles.size, height)
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        seen[top:bottom, left:right] = True
    assert seen.all()
    for axis in (0, 1):
        starts = np.unique(windows[:, axis])
        assert (np.diff(starts) <= max(1, tiles.size * (1 - tiles.overlap))).all()
    assert len(np.unique(windows, axis=0)) == len(windows)


@pytest.mark.parametrize("params", [{"size": 0}, {"size": 10**3, "overlap": 1}, {"overlap": -0.1}, {"iou": 0.5}])
def test_parameters_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=list(params)[-1]):
        Tiles(**params)


# ---------------------------------------------------------------- merging

WIDTH, HEIGHT = 500, 400


@st.composite
def scenes(draw: st.DrawFn) -> np.ndarray:
    """Rectangles that do not overlap, some larger than a tile, xyxy."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    taken = np.zeros((HEIGHT, WIDTH), dtype=bool)
    boxes = []
    for _ in range(draw(st.integers(1, 25))):
        width, height = rng.integers(8, rng.choice([30, 90, 260]), 2)
        left, top = rng.integers(0, WIDTH - width), rng.integers(0, HEIGHT - height)
        place = np.s_[top : top + height, left : left + width]
        if not taken[place].any():
            taken[place] = True
            boxes.append([left, top, left + width, top + height])
    return np.array(boxes)


def seen(boxes: np.ndarray, windows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """What a perfect detector says of every view, best first: box, class, view, score and which object it is.

    Something cut has a score that is lower by what is missing; all tell apart which object they are by their score.
    """
    classes, rows = rng.integers(0, 2, len(boxes)), []
    for view, window in enumerate(windows):
        low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
        for index in np.flatnonzero(((high - low) >= 1).all(axis=1)):
            share = np.prod(high[index] - low[index]) / np.prod(boxes[index, 2:] - boxes[index, :2])
            score = 0.9 * share - 0.01 * index / len(boxes) - 1e-6 * view
            rows.append([*low[index], *high[index], classes[index], view, score, index])
    table = np.array(rows)
    table = table[np.argsort(-table[:, 6])]
    numbers = table[:, 4:].astype(np.int64)
    return table[:, :4].astype(np.float32), numbers[:, 0], numbers[:, 1], table[:, 6], numbers[:, 3]


@given(scenes(), st.integers(90, 250), st.floats(0.1, 0.6), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_object_comes_out_once_and_whole(
    objects: np.ndarray, size: int, overlap: float, whole: bool, seed: int
) -> None:
    windows = Tiles(size=size, overlap=overlap, whole=whole).windows(WIDTH, HEIGHT)
    boxes, classes, views, scores, which = seen(objects, windows, np.random.default_rng(seed))
    stays, merged = merge(boxes, classes, views, windows)
    assert sorted(which[stays].tolist()) == list(range(len(objects)))
    np.testing.assert_array_equal(merged, objects[which[stays]].astype(np.float32))
    best = [scores[which == index].max() for index in which[stays]]
    np.testing.assert_array_equal(scores[stays], best)
    assert stays == sorted(stays)


WINDOWS = Tiles(size=100, overlap=0.4).windows(160, 100)
"""The whole image, x from 0 to 100, and x from 60 to 160."""


def merged(*rows: tuple[int, list[float]] | tuple[int, list[float], int]) -> list[tuple[int, list[float]]]:
    """Detections (view, box, class 0), best first: which stay, and their boxes."""
    boxes = np.array([row[1] for row in rows], dtype=np.float32)
    classes = np.array([row[2] if len(row) == 3 else 0 for row in rows])
    stays, found = merge(boxes, classes, np.array([row[0] for row in rows]), WINDOWS)
    return list(zip(stays, found.tolist(), strict=True))


def test_windows_of_the_cases_below() -> None:
    assert WINDOWS.tolist() == [[0, 0, 160, 100], [0, 0, 100, 100], [60, 0, 160, 100]]


def test_a_part_gives_way_to_the_whole_even_where_it_scores_better() -> None:
    part, whole = [70, 20, 100, 50], [70, 20, 120, 50]
    assert merged((1, part), (2, whole)) == [(0, whole)]
    assert merged((2, whole), (1, part)) == [(0, whole)]
    assert merged((1, part), (2, whole, 1)) == [(0, part), (1, whole)], "another class"


def test_two_parts_of_what_no_tile_sees_whole_become_one() -> None:
    assert merged((1, [20, 20, 100, 50]), (2, [60, 20, 140, 50])) == [(0, [20, 20, 140, 50])]
    assert merged((1, [20, 20, 100, 50]), (2, [60, 22, 140, 51]), (0, [21, 21, 139, 52])) == [(0, [21, 21, 139, 52])]


def test_a_part_is_not_taken_for_a_box_around_several() -> None:
    part, group = [80, 20, 100, 40], [5, 5, 155, 95]
    assert merged((1, part), (0, group)) == [(0, part), (1, group)]


def test_second_thoughts_of_one_view_stay_raw_but_not_parts_of_what_is_made() -> None:
    first, second = [10, 20, 40, 50], [12, 20, 44, 50]
    assert merged((1, first), (1, second)) == [(0, first), (1, second)]
    whole, part, worse = [70, 20, 120, 50], [70, 20, 100, 50], [72, 22, 100, 52]
    assert merged((2, whole), (1, part), (1, worse)) == [(0, whole)]
    assert merged((1, part), (1, worse), (2, whole)) == [(0, whole)]


def test_one_object_in_two_views_is_one_and_its_neighbour_stays() -> None:
    assert merged((1, [65, 20, 85, 50]), (2, [66, 21, 86, 50]), (0, [64, 18, 86, 50])) == [(0, [65, 20, 85, 50])]
    assert len(merged((1, [65, 20, 85, 50]), (2, [85, 20, 95, 50]))) == 2


def test_a_box_at_the_edge_of_the_image_is_not_cut() -> None:
    assert merged((1, [0, 20, 30, 50]), (0, [0, 20, 70, 50])) == [(0, [0, 20, 30, 50]), (1, [0, 20, 70, 50])]


def test_nothing_found() -> None:
    stays, boxes = merge(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), WINDOWS)
    assert stays == [] and boxes.shape == (0, 4)


def test_many_tiles_do_not_take_long() -> None:
    windows = Tiles(size=1024).windows(16000, 9000)
    rng = np.random.default_rng(0)
    views = np.repeat(np.arange(len(windows)), 100)
    low = windows[views, :2] + rng.uniform(0, 900, (len(views), 2))
    boxes = np.column_stack([low, np.minimum(low + rng.uniform(10, 120, low.shape), windows[views, 2:])])
    started = time.process_time()
    stays, _ = merge(boxes.astype(np.float32), rng.integers(0, 5, len(views)), views, windows)
    assert len(views) > 20_000
    assert len(stays) > 0.8 * len(views)
    assert time.process_time() - started < 10
