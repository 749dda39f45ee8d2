"""`near_partitions`: cells as tasks find what one process finds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.duplicates import vectors_of_a_cell, voronoi
from labelmill.operators.duplicates.components import connect
from labelmill.operators.duplicates.near_vectors import NearVectors
from labelmill.operators.duplicates.representatives import choose
from tests.operators.duplicates.pickled_tasks import PickledTasks
from tests.operators.duplicates.test_representatives import clustered, column, greedy

LITTLE = 3e-5
"""Gigabytes that 700 vectors of 16 numbers do not fit into."""


@pytest.fixture(autouse=True)
def many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voronoi, "CELL", 20)
    monkeypatch.setattr(voronoi, "TAKING", 0)
    monkeypatch.setattr(vectors_of_a_cell, "ROWS", 16)
    monkeypatch.setattr("labelmill.operators.duplicates.near_partitions.LEAST_BLOCK", 64)
    monkeypatch.setattr("labelmill.operators.duplicates.near_vectors.SAMPLE", 2)  # so little memory allows 31 cells


def vectors_of(count: int, kind: pa.DataType) -> Vectors:
    found = clustered(np.random.default_rng(1), count, spread=0.15)
    found[-50:] = found[:50]
    return Vectors(column(found).cast(pa.list_(kind, found.shape[1])))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_tasks_find_what_brute_force_finds(kind: pa.DataType, tmp_path: Path) -> None:
    vectors, order = vectors_of(700, kind), np.random.default_rng(2).permutation(700)
    tasks = PickledTasks(tmp_path)
    near = NearVectors(vectors, order, 0.98, LITTLE, tasks)
    exact = vectors.block(0, 700).astype(np.float64)[order]
    truth = exact @ exact.T >= 0.98 - vectors_of_a_cell.ROUNDING
    assert choose([near], 700).tolist() == greedy(truth)
    # Every block was written and the buckets were searched, each call twice.
    blocks = len(list(tmp_path.glob("block-*.parquet")))
    assert tasks.calls["_write_block"] == blocks > 3 and tasks.calls["_search_bucket"] > 3


def test_groups_are_the_same_too(tmp_path: Path) -> None:
    vectors, order = vectors_of(700, pa.float16()), np.random.default_rng(3).permutation(700)
    tasks = PickledTasks(tmp_path)
    spread = connect([NearVectors(vectors, order, 0.97, LITTLE, tasks)], 700)
    alone = connect([NearVectors(vectors, order, 0.97)], 700)
    assert np.array_equal(spread[0], alone[0]) and tasks.calls
    assert 10 < len(set(spread[0].tolist())) < 650


def test_what_fits_into_memory_starts_no_task(tmp_path: Path) -> None:
    tasks = PickledTasks(tmp_path)
    near = NearVectors(vectors_of(700, pa.float16()), np.arange(700), 0.98, tasks=tasks)
    near.first(np.ones(700, bool), np.ones(700, bool))
    assert not tasks.calls and not list(tmp_path.glob("block-*"))


def test_few_that_ask_few_are_answered_here(tmp_path: Path) -> None:
    vectors, tasks = vectors_of(700, pa.float16()), PickledTasks(tmp_path)
    near, alone = NearVectors(vectors, np.arange(700), 0.98, LITTLE, tasks), NearVectors(vectors, np.arange(700), 0.98)
    everything, few = np.ones(700, bool), np.arange(700) % 7 == 0
    near.first(everything, everything)
    before = dict(tasks.calls)
    assert np.array_equal(near.first(few, few), alone.first(few, few))
    assert tasks.calls == before


def test_a_task_reads_its_bucket_only_and_is_sent_no_vectors(tmp_path: Path) -> None:
    vectors, tasks = vectors_of(700, pa.float16()), PickledTasks(tmp_path)
    near = NearVectors(vectors, np.arange(700), 0.98, LITTLE, tasks)
    near.first(np.ones(700, bool), np.zeros(700, bool))
    assert list(tasks.calls) == ["_write_block"], "nobody can be found, so nothing is searched"
    partitions = near._partitions
    assert partitions is not None
    files = [pq.ParquetFile(file) for file in tmp_path.glob("block-*.parquet")]
    for file in files:
        groups = [file.read_row_group(group).column("cell").to_numpy() for group in range(file.num_row_groups)]
        assert all(one.max() < other.min() for one, other in pairwise(groups))
    written = sum(file.metadata.num_rows for file in files)
    assert 700 < written == sum(len(partitions._members(bucket)[0]) for bucket in range(len(partitions)))
    assert written == sum(len(cell) for cell in partitions.cells())
    # The members of all cells together are every image, most of them once.
    assert np.unique(np.concatenate(list(partitions.cells()))).tolist() == list(range(700))


def test_what_a_task_raises_ends_the_search(tmp_path: Path) -> None:
    vectors, tasks = vectors_of(700, pa.float16()), PickledTasks(tmp_path)
    near = NearVectors(vectors, np.arange(700), 0.98, LITTLE, tasks)
    everything = np.ones(700, bool)
    near.first(everything, everything)
    next(tmp_path.glob("block-*.parquet")).write_bytes(b"cut off")
    with pytest.raises(pa.ArrowInvalid):
        near.first(everything, everything)
