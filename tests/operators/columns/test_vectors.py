"""Reading embeddings of a whole dataset: right whatever the chunks, and never all of them at once."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.applying.results import to_array
from labelmill.operators.columns import vectors as module
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.columns.vectors import INFINITE, MISSING, ZERO, Vectors

WIDTH = 5


def column(values: list[Any], cuts: tuple[int, ...] = (), kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """In chunks that are slices of one array, so that they have offsets."""
    kind = kind or embedding(WIDTH)
    array = to_array(values, kind)
    edges = [0, *cuts, len(values)]
    chunks = [array.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    return pa.chunked_array(chunks, kind)


def unit(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


def random(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float16)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_row_is_found_whatever_the_chunks(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 30))
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, count), max_size=4))))
    values: list[Any] = list(random(count))
    bad: dict[int, str] = {}
    for row in data.draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=4, unique=True)) if count else []:
        problem = data.draw(st.sampled_from([MISSING, ZERO, INFINITE]))
        bad[row] = problem
        values[row] = None if problem == MISSING else np.full(WIDTH, 0 if problem == ZERO else np.nan)
    found = Vectors(column(values, cuts))
    assert len(found) == count
    assert found.dimensions == WIDTH
    assert found.problems == bad
    assert found.usable.tolist() == [row not in bad for row in range(count)]
    expected = np.array([np.zeros(WIDTH) if row in bad else unit(values[row]) for row in range(count)])
    expected = expected.reshape(count, WIDTH)
    np.testing.assert_allclose(found.block(0, count), expected, atol=1e-6)
    rows = np.array(data.draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=10)) if count else [], dtype=int)
    taken = found.take(rows)
    assert taken.dtype == np.float32
    assert taken.shape == (len(rows), WIDTH)
    np.testing.assert_array_equal(taken, found.block(0, count)[rows])
    size = data.draw(st.integers(1, 12))
    parts = list(found.blocks(size))
    assert [start for start, _ in parts] == list(range(0, count, size))
    np.testing.assert_array_equal(np.concatenate([*(part for _, part in parts), taken[:0]]), found.block(0, count))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_spoils_its_vector_only(number: float) -> None:
    values = random(3)
    values[1, 4] = number
    found = Vectors(column(list(values)))
    assert found.problems == {1: INFINITE}
    np.testing.assert_allclose(found.block(0, 3)[[0, 2]], unit(values[[0, 2]]), atol=1e-6)


def test_a_null_inside_a_vector_is_not_a_zero() -> None:
    array = pa.array([[1, 2, 3, 4, 5], [1, None, 3, 4, 5], None, [5, 4, 3, 2, 1]], embedding(WIDTH))
    found = Vectors(pa.chunked_array([array]))
    assert found.problems == {1: INFINITE, 2: MISSING}
    np.testing.assert_allclose(found.take(np.array([3]))[0], unit(np.array([5, 4, 3, 2, 1])), atol=1e-6)


def test_nulls_alone() -> None:
    found = Vectors(pa.chunked_array([pa.nulls(4, embedding(WIDTH))]))
    assert found.problems == dict.fromkeys(range(4), MISSING)
    assert not found.block(0, 4).any()


def test_no_rows() -> None:
    for empty in (pa.chunked_array([], embedding(WIDTH)), pa.chunked_array([pa.nulls(0, embedding(WIDTH))])):
        found = Vectors(empty)
        assert len(found) == 0
        assert found.dimensions == WIDTH
        assert found.problems == {}
        assert found.block(0, 10).shape == (0, WIDTH)
        assert list(found.blocks()) == []


def test_a_block_ends_where_the_rows_end() -> None:
    found = Vectors(column(list(random(7))))
    assert found.block(5, 99).shape == (2, WIDTH)
    assert found.block(7, 9).shape == (0, WIDTH)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_the_smallest_and_largest_numbers_of_each_type_are_vectors(kind: pa.DataType) -> None:
    limits = np.finfo(kind.to_pandas_dtype())
    direction = np.array([1, -1, 0.5, 0, 1])
    scales = [float(limits.max), float(limits.tiny), float(limits.smallest_subnormal) * 2, 1.0]
    values = [direction * scale for scale in scales]
    found = Vectors(column(values, kind=pa.list_(kind, WIDTH)))
    assert found.problems == {}
    np.testing.assert_allclose(found.block(0, 4), np.tile(unit(direction), (4, 1)), atol=1e-6)


def test_a_vector_does_not_depend_on_what_is_read_with_it() -> None:
    values = np.random.default_rng(1).normal(size=(50, 513)).astype(np.float16)
    found = Vectors(column(list(values), (11, 30), embedding(513)))
    together = found.block(0, 50)
    for row in range(50):
        assert (found.block(row, row + 1)[0] == together[row]).all()
        assert (found.take(np.array([49, row, 0]))[1] == together[row]).all()


def test_what_is_memory_mapped_stays_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width, count = 64, 20_000
    values = np.random.default_rng(0).normal(size=(count, width)).astype(np.float16)
    path = str(tmp_path / "column.arrow")
    batch = pa.table({"v": to_array(values, embedding(width))})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_table(batch, max_chunksize=7_000)
    monkeypatch.setattr(module, "BLOCK", 500)
    with pa.memory_map(path) as file:
        mapped = pa.ipc.open_file(file).read_all().column("v")
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            found = Vectors(mapped)
            seen = sum(len(block) for _, block in found.blocks(500))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert seen == count
        # A tenth of the vectors as float32, and a byte for each row.
        assert peak < values.size * 4 / 10
        assert pa.total_allocated_bytes() - before < values.nbytes / 10
        np.testing.assert_allclose(found.take(np.array([19_999, 0])), unit(values[[19_999, 0]]), atol=1e-6)
