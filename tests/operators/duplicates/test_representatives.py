"""`near_hashes`, `near_vectors` and `greedy`: all pairs and the greedy choice, against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.duplicates import near_vectors, vectors_of_a_cell, voronoi
from labelmill.operators.duplicates.near_hashes import NearHashes, _choices
from labelmill.operators.duplicates.near_vectors import NearVectors
from labelmill.operators.duplicates.representatives import NONE, TOGETHER, choose


class Pairs:
    """A `Near` that is told which resemble which."""

    def __init__(self, near: NDArray[np.bool_]) -> None:
        self.near = near

    def first(
        self, asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        earlier = np.tril(self.near, -1) & asked[:, None] & among
        if parts is not None:
            earlier &= parts[:, None] != parts
        return np.where(earlier.any(axis=1), earlier.argmax(axis=1), NONE)

    def among(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.near[np.ix_(ranks, ranks)]


def greedy(near: NDArray[np.bool_], settled: int = 0) -> list[int]:
    """In words: look at each in order; it goes if it resembles one that stayed."""
    kept: list[int] = []
    found = []
    for rank in range(len(near)):
        alike = [] if rank < settled else [other for other in kept if near[rank, other]]
        found.append(alike[0] if alike else rank)
        if not alike:
            kept.append(rank)
    return found


def hamming(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.bool_]:
    """Of (n, variants): the first of the row against any of the column."""
    return (np.bitwise_count(hashes[:, None, :1] ^ hashes[None]) <= distance).any(axis=2)


def flipped(rng: np.random.Generator, hashes: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
    """The same with 0 to `most` bits of each changed."""
    changed = hashes.copy()
    for _ in range(most):
        changed ^= np.uint64(1) << rng.integers(64, size=changed.shape).astype(np.uint64)
    return changed


def column(vectors: NDArray[np.floating]) -> pa.ChunkedArray:
    flat = pa.array(vectors.astype(np.float16).ravel())
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])])


def clustered(rng: np.random.Generator, count: int, dimensions: int = 16, spread: float = 0.2) -> NDArray[np.float64]:
    centres = rng.normal(size=(12, dimensions))
    return centres[rng.integers(12, size=count)] + spread * rng.normal(size=(count, dimensions))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.3), st.integers(0, 2**32), st.integers(0, 40))
def test_the_greedy_choice_is_that_of_looking_at_each_in_order(count: int, share: float, seed: int, old: int) -> None:
    near = np.random.default_rng(seed).random((count, count)) < share
    near |= near.T
    settled = min(old, count)
    assert choose([Pairs(near)], count, settled).tolist() == greedy(near, settled)


@pytest.mark.parametrize("count", [3, TOGETHER + 700])
def test_a_chain_keeps_every_other_one(count: int) -> None:
    """Each resembles its neighbours: only what is decided in order can be decided at all."""
    hashes = np.array([(1 << (rank % 60 + 1)) - 1 for rank in range(min(count, 60))], np.uint64)
    near = hamming(hashes[:, None], 1)
    assert choose([NearHashes(hashes, 1)], len(hashes)).tolist() == greedy(near)
    if count > TOGETHER:
        ranks = np.arange(count)

        class Neighbours:
            def first(
                self, asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None = None
            ) -> NDArray[np.int64]:
                before = np.concatenate([[False], among[:-1]])
                return np.where(asked & before, ranks - 1, NONE)

            def among(self, some: NDArray[np.int64]) -> NDArray[np.bool_]:
                return np.abs(some[:, None] - some) == 1

        assert np.array_equal(choose([Neighbours()], count) == ranks, ranks % 2 == 0)


def test_two_kinds_at_once() -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.random((60, 60)) < 0.03 for _ in range(2))
    one, two = one | one.T, two | two.T
    assert choose([Pairs(one), Pairs(two)], 60).tolist() == greedy(one | two)


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 8, 16])
@pytest.mark.parametrize("variants", [1, 8])
def test_hashes_against_brute_force(distance: int, variants: int) -> None:
    rng = np.random.default_rng(distance)
    base = rng.integers(2**64, size=40, dtype=np.uint64)
    hashes = np.stack([flipped(rng, base[rng.integers(40, size=300)], distance) for _ in range(variants)], axis=1)
    near = NearHashes(hashes if variants > 1 else hashes[:, 0], distance)
    truth = hamming(hashes, distance)
    assert 0 < np.tril(truth, -1).sum() < 300 * 299 / 2
    asked, among = rng.random((2, 300)) < 0.6
    for who, whom in ((asked, among), (np.ones(300, bool), np.ones(300, bool)), (asked, np.zeros(300, bool))):
        assert np.array_equal(near.first(who, whom), Pairs(truth).first(who, whom))
    ranks = np.flatnonzero(asked)
    assert np.array_equal(np.tril(near.among(ranks), -1), np.tril(truth[np.ix_(ranks, ranks)], -1))
    assert choose([near], 300).tolist() == greedy(truth)


@pytest.mark.parametrize(
    ("count", "distance"), [*((count, bits) for count in (2, 1000, 10**7, 10**9) for bits in (0, 1, 4)), (1000, 16)]
)
def test_whatever_bits_differ_one_choice_has_none_of_them(count: int, distance: int) -> None:
    rng = np.random.default_rng(0)
    choices = [sum((1 << width) - 1 << low for low, width in chosen) for chosen in _choices(count, distance)]
    for _ in range(200):
        differing = sum(1 << int(bit) for bit in rng.choice(64, size=distance, replace=False))
        assert any(mask & differing == 0 for mask in choices)


def test_a_hundred_thousand_equal_hashes_are_not_compared_with_each_other() -> None:
    hashes = np.full(100_000, 7, np.uint64)
    assert not choose([NearHashes(hashes, 4)], len(hashes)).any()


def test_hashes_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="must be uint64 of 1 or 2 dimensions but are int64 of 1"):
        NearHashes(np.zeros(3, np.int64), 4)
    with pytest.raises(ValueError, match="distance must be from 0 to 16 but is 17"):
        NearHashes(np.zeros(3, np.uint64), 17)


@pytest.fixture(params=[False, True], ids=["one cell", "many cells"])
def many_cells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(voronoi, "CELL", 40 if request.param else 1000)
    if request.param:
        monkeypatch.setattr(voronoi, "TAKING", 0)
        monkeypatch.setattr(vectors_of_a_cell, "ROWS", 16)
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["single precision", "half precision"])
def half_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": request.param})
    return bool(request.param)


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize(("threshold", "spread"), [(0.98, 0.15), (0.9, 0.3), (1.0, 0.2)])
def test_vectors_against_brute_force(many_cells: bool, threshold: float, spread: float) -> None:
    rng = np.random.default_rng(1)
    found = clustered(rng, 700, spread=spread)
    found[300:350] = found[:50]
    vectors = Vectors(column(found))
    order = rng.permutation(700)
    near = NearVectors(vectors, order, threshold)
    exact = vectors.block(0, 700).astype(np.float64)[order]
    truth = exact @ exact.T >= threshold - vectors_of_a_cell.ROUNDING
    assert 700 < truth.sum() < 700**2 / 2
    asked, among = rng.random((2, 700)) < 0.5
    for who, whom in ((asked, among), (np.ones(700, bool), np.ones(700, bool))):
        assert np.array_equal(near.first(who, whom), Pairs(truth).first(who, whom))
    assert near._cells is not None and (len(near._cells) > 3) == many_cells
    assert np.array_equal(near.among(np.arange(0, 700, 3)), truth[::3, ::3])
    assert choose([near], 700).tolist() == greedy(truth)


def test_every_near_pair_shares_a_cell_of_one_of_them(half_precision: bool) -> None:
    found = Vectors(column(clustered(np.random.default_rng(4), 900, spread=0.2))).block(0, 900)
    borders = voronoi.Borders(found, 12, 0.95)
    row, cell = borders.cells_of(found)
    within = np.zeros((900, 12), bool)
    within[row, cell] = True
    assert within.any(axis=1).all() and 1 < within.sum(axis=1).mean() < 4
    one, other = np.nonzero(found.astype(np.float64) @ found.T >= 0.95)
    assert (within[one] & within[other]).any(axis=1).all()


@pytest.mark.parametrize(("groups", "least", "most"), [(160, 90, 200), (8, 2, 70)])
def test_there_are_as_many_cells_as_there_is_structure_for(groups: int, least: int, most: int) -> None:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(groups, 64))[rng.integers(groups, size=8000)] + 0.35 * rng.normal(size=(8000, 64))
    vectors = Vectors(column(found)).block(0, 8000)
    borders, sizes = voronoi.best_borders(lambda rows: vectors[rows], 8000, 0.95, 10**6)
    assert borders is not None and least <= len(borders) <= most
    assert 8000 <= sizes.sum() < 1.5 * 8000


def test_scores_in_half_precision_are_as_exact_as_is_assumed() -> None:
    rng = np.random.default_rng(5)
    unit = rng.normal(size=(500, 64))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centres = np.concatenate([unit[:200], -unit[200:400], 0.7 * unit[:200]])
    exact = unit @ centres.T - (centres**2).sum(axis=1) / 2
    vectors, others, offset = (
        torch.from_numpy(each).bfloat16() for each in (unit, centres, -(centres**2).sum(axis=1) / 2)
    )
    wrong = np.abs(torch.addmm(offset, vectors, others.T).double().numpy() - exact)
    assert voronoi.HALF_ROUNDING / 4 < wrong.max() <= voronoi.HALF_ROUNDING


def test_little_memory_makes_fewer_cells_and_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voronoi, "CELL", 20)
    monkeypatch.setattr(voronoi, "TAKING", 0)
    vectors = Vectors(column(clustered(np.random.default_rng(2), 600, spread=0.1)))
    ample, little = (NearVectors(vectors, np.arange(600), 0.98, memory_gb) for memory_gb in (2.0, 2.5e-5))
    assert np.array_equal(choose([ample], 600), choose([little], 600))
    assert ample._cells is not None and little._cells is not None
    assert 1 < len(little._cells) <= little._most < len(ample._cells)


def test_threads_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voronoi, "CELL", 20)
    monkeypatch.setattr(voronoi, "TAKING", 0)
    monkeypatch.setattr(near_vectors, "BLOCK", 100)
    vectors = Vectors(column(clustered(np.random.default_rng(6), 1500, spread=0.15)))
    before, found = torch.get_num_threads(), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        near = NearVectors(vectors, np.arange(1500), 0.95)
        found.append(choose([near], 1500))
        assert near._cells is not None and len(near._cells) > 5
    torch.set_num_threads(before)
    assert np.array_equal(*found)
    assert 100 < (found[0] != np.arange(1500)).sum() < 1490


def test_vectors_without_structure_are_compared_all_with_all() -> None:
    found = np.random.default_rng(0).normal(size=(3000, 64))
    near = NearVectors(Vectors(column(found)), np.arange(3000), 0.5)
    assert (choose([near], 3000) == np.arange(3000)).sum() == len(set(greedy(_cosines(found) >= 0.5)))


def test_many_vectors_that_are_nearly_the_same() -> None:
    found = 1 + 0.001 * np.random.default_rng(0).normal(size=(20_000, 32))
    assert not choose([NearVectors(Vectors(column(found)), np.arange(20_000), 0.95)], 20_000).any()


def test_thresholds_that_make_no_sense_are_refused() -> None:
    vectors = Vectors(column(np.ones((2, 4))))
    for threshold in (0.0, -0.5, 1.01):
        with pytest.raises(ValueError, match="threshold must be above 0 and at most 1"):
            NearVectors(vectors, np.arange(2), threshold)


def _cosines(found: NDArray[np.float64]) -> NDArray[np.float64]:
    exact = Vectors(column(found)).block(0, len(found)).astype(np.float64)
    product: NDArray[np.float64] = exact @ exact.T
    return product
