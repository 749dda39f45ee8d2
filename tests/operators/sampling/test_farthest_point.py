from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.sampling import farthest_point
from labelmill.operators.sampling.farthest_point import FarthestPoints


def vectors(numbers: np.ndarray, chunk: int = 7) -> Vectors:
    halves = numbers.astype(np.float16)
    width = numbers.shape[1]
    chunks = [
        pa.FixedSizeListArray.from_arrays(pa.array(halves[start : start + chunk].ravel()), width)
        for start in range(0, len(halves), chunk)
    ]
    return Vectors(pa.chunked_array(chunks, pa.list_(pa.float16(), width)))


def brute_force(found: Vectors, candidates: list[int], chosen: list[int], count: int) -> list[int]:
    """Every distance in whole numbers, with no shortcut."""
    scale = np.float32(4096 - np.sqrt(found.dimensions) / 2)
    points = np.rint(found.take(np.arange(len(found))) * scale).astype(np.int64)
    left, picked = list(candidates), list(chosen)
    order = []
    while left and len(order) < count:
        distances = [min((((points[row] - points[one]) ** 2).sum() for one in picked), default=1 << 40) for row in left]
        row = left.pop(int(np.argmax(distances)))
        picked.append(row)
        order.append(row)
    return order


def pick(points: FarthestPoints, rows: int, count: int) -> list[int]:
    gone = np.zeros(rows, dtype=bool)
    order: list[int] = []
    while len(order) < count and (row := points.next(gone)) is not None:
        points.choose(row)
        order.append(row)
    return order


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_the_same_as_comparing_everything(seed: int, rows: int, width: int, alike: bool) -> None:
    random = np.random.default_rng(seed)
    numbers = random.integers(-1, 2, (rows, width)).astype(float) if alike else random.normal(size=(rows, width))
    numbers[~numbers.any(axis=1)] = 1
    found, order = vectors(numbers), random.permutation(rows)
    first = int(random.integers(0, rows + 1))
    candidates, chosen = order[:first], order[first:][: int(random.integers(0, 5))]
    count = int(random.integers(0, rows + 2))
    expected = brute_force(found, candidates.tolist(), chosen.tolist(), count)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("POOL", "STEP", "BLOCK"):
            patch.setattr(farthest_point, name, int(random.integers(1, 9)))
        for memory in (0, 10**9):
            assert pick(FarthestPoints(found, candidates, chosen, rows, memory), rows, count) == expected


def test_rows_that_are_gone_are_passed_over_and_other_choices_count() -> None:
    numbers = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0.9, 0.1]])
    points = FarthestPoints(vectors(numbers), np.arange(5), np.array([0]), 5, 10**6)
    gone = np.zeros(5, dtype=bool)
    gone[2] = True
    points.choose(2)  # by another class
    rows = [points.next(gone)]
    points.choose(1)
    rows += [points.next(gone), points.next(gone), points.next(gone)]
    assert rows == [1, 3, 4, 0]
    assert points.next(gone) is None


def test_only_so_many_candidates_are_looked_at_and_more_join_later() -> None:
    angles = np.linspace(0, 3, 60)
    found = vectors(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    points = FarthestPoints(found, np.arange(60), np.array([], dtype=np.int64), 10, 10**6)
    order = pick(points, 60, 60)
    assert sorted(order) == list(range(60))
    assert order[:2] == [0, 9]  # the farthest of the first ten
    assert max(order[:5]) < 10 <= max(order[5:8])


def test_copies_are_chosen_last_in_their_order() -> None:
    numbers = np.ones((3_000, 4))
    numbers[1_500] = [1, 1, 1, -1]
    points = FarthestPoints(vectors(numbers, 256), np.arange(3_000), np.array([], dtype=np.int64), 3_000, 10**9)
    assert pick(points, 3_000, 2_500) == [0, 1_500, *range(1, 1_500), *range(1_501, 2_500)]


def test_products_of_rounded_vectors_are_exact() -> None:
    """The longest vectors there can be: any other order of summation gives the same float32."""
    random = np.random.default_rng(0)
    for width in (1, 2, 512, 4096):
        numbers = np.concatenate([np.ones((2, width)), random.normal(size=(20, width))])
        found = vectors(numbers)
        points = FarthestPoints(found, np.arange(len(found)), np.array([], dtype=np.int64), 100, 10**9)
        read = points._read(np.arange(len(found)))
        whole = read.astype(np.int64)
        assert (whole**2).sum(axis=1).max() <= 2**24
        assert np.array_equal((read @ read.T).astype(np.int64), whole @ whole.T)
        shuffled = random.permutation(width)
        assert np.array_equal(read[:, shuffled] @ read[:, shuffled].T, read @ read.T)
