from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.operators.errors import OperatorError
from labelmill.operators.odd_size import OddSize


def rows(sizes: Sequence[float | None], **more: Any) -> pa.Table:
    ids = pa.array(range(1, len(sizes) + 1), pa.int64())
    keys = pa.array([f"{i}.jpg" for i in range(len(sizes))], pa.string())
    return pa.table({"image_id": ids, "key": keys, "size": pa.array(sizes, pa.float32()), **more})


def score(new: Sequence[float | None], old: Sequence[float | None] = ()) -> list[Any]:
    earlier = rows(old, odd_size=pa.nulls(len(old), pa.float32()), decision=["kept"] * len(old))
    result = OddSize(OddSize.Params()).compute(rows(new), earlier)
    assert result.decisions is None
    assert result.columns is not None
    assert result.columns.schema == OddSize(OddSize.Params()).writes()
    return result.columns.column("odd_size").to_pylist()


def cleanvision(sizes: list[float]) -> np.ndarray:
    """CleanVision's definition, written down again."""
    low, high = np.percentile(sizes, [25, 75])
    floor, ceiling = low - 3 * (high - low), high + 3 * (high - low)
    middle, gap = (floor + ceiling) / 2, ceiling - floor
    return 1 - np.clip(np.abs(np.array(sizes) - middle) / (gap if gap > 0 else middle), 0, 1)


@given(st.lists(st.floats(1, 20_000, width=32), min_size=1, max_size=40))
def test_scores_are_those_of_cleanvision(sizes: list[float]) -> None:
    assert score(sizes) == pytest.approx(cleanvision(sizes).tolist(), abs=1e-5)


def test_sizes_beyond_three_quartile_ranges_score_below_a_half() -> None:
    sizes = [float(size) for size in range(100, 201, 10)]  # quartiles 125 and 175, so −25 to 325 is usual
    scores = score([*sizes, 320.0, 2000.0])
    assert all(value > 0.5 for value in scores[:11])
    assert scores[-1] == 0


def test_where_most_have_one_size_every_other_size_is_odd() -> None:
    assert score([100.0] * 9 + [150.0]) == pytest.approx([1.0] * 9 + [0.5])


def test_earlier_images_count_and_keep_their_scores() -> None:
    old = [float(size) for size in range(100, 201, 10)]
    assert score([150.0, 2000.0], old) == pytest.approx(cleanvision([*old, 150.0, 2000.0])[-2:].tolist(), abs=1e-6)


def test_images_without_a_size_get_no_score_and_do_not_count() -> None:
    first, second, third = score([100.0, 100.0, 150.0])
    assert score([100.0, None, 100.0, 150.0]) == [first, None, second, third]
    assert score([None, None]) == [None, None]


def test_no_rows_give_no_rows() -> None:
    assert score([]) == []
    assert score([], [100.0]) == []


@given(st.permutations(list(range(12))))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    sizes = [50.0 + 37.0 * i**1.5 for i in range(12)]
    shuffled = score([sizes[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(12)] == score(sizes)


def test_a_size_of_another_type_is_refused() -> None:
    with pytest.raises(OperatorError, match="column 'size' must be float but is int32"):
        OddSize(OddSize.Params()).check({"size": pa.int32()})
