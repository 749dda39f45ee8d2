"""Neighbours against comparing with everything, and the outlier factor against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from labelmill.operators.clustering import neighbours as module
from labelmill.operators.clustering.neighbours import Neighbours, outlier_scores
from tests.operators.clustering.planted import planted, points_of


def brute(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    apart = squareform(pdist(vectors.astype(np.float64)))
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :count]
    return nearest, np.take_along_axis(apart, nearest, 1)


def test_neighbours_are_the_nearest_and_never_the_point_itself() -> None:
    points = points_of(planted([100, 60], noise=40)[0])
    everything = np.arange(len(points))
    found = Neighbours(points, everything).search(everything, 7)
    nearest, apart = brute(points.load(), 7)
    np.testing.assert_array_equal(found.points, nearest)
    np.testing.assert_allclose(found.distances, apart, atol=1e-6)


def test_distances_of_near_copies_are_exact() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=512)
    # A step of float16 in one or two numbers: far below what 1 - cosine can tell in float32.
    copies = np.tile((base / np.linalg.norm(base)).astype(np.float16), (12, 1))
    for row in range(12):
        copies[row, row] = np.nextafter(copies[row, row], np.float16(9))
    points = points_of(copies)
    everything = np.arange(12)
    found = Neighbours(points, everything).search(everything, 11)
    wide = copies.astype(np.float64)
    _, apart = brute(wide / np.linalg.norm(wide, axis=1, keepdims=True), 11)
    assert apart.max() < 1e-3
    np.testing.assert_allclose(found.distances, apart, rtol=2e-3)


def test_only_the_chosen_are_found() -> None:
    points = points_of(planted([50])[0])
    chosen = np.arange(0, 50, 3)
    found = Neighbours(points, chosen).search(np.array([0, 1, 49]), 5)
    assert np.isin(found.points, chosen).all()
    assert 0 not in found.points[0]
    apart = squareform(pdist(points.load().astype(np.float64)))
    np.testing.assert_allclose(found.distances[1], np.sort(apart[1, chosen])[:5], atol=1e-6)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0), (2, 1), (5, 4), (40, 9)])
def test_there_are_no_more_neighbours_than_other_points(count: int, expected: int) -> None:
    points = points_of(planted([count])[0])
    everything = np.arange(count)
    assert Neighbours(points, everything).search(everything, 9).points.shape == (count, expected)


def test_cells_find_nearly_what_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = points_of(planted([30] * 100, noise=300, spread=0.8)[0])
    everything = np.arange(len(points))
    exact = Neighbours(points, everything, exact=True).search(everything, 10)
    monkeypatch.setattr(module, "EXACT", 100)
    monkeypatch.setattr(module, "CELL", 15)
    found = Neighbours(points, everything).search(everything, 10)
    assert not (found.points == everything[:, None]).any()
    recall = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(found.points, exact.points, strict=True)])
    assert 0.9 < recall < 1
    again = Neighbours(points, everything).search(everything, 10)
    np.testing.assert_array_equal(found.points, again.points)


def test_neighbours_that_the_cells_do_not_hold_are_sought_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points = points_of(planted([20] * 10, spread=0.05)[0])
    everything = np.arange(len(points))
    monkeypatch.setattr(module, "EXACT", 100)
    monkeypatch.setattr(module, "CELL", 4)
    monkeypatch.setattr(module, "PROBES", 1)
    found = Neighbours(points, everything).search(everything, 60)
    np.testing.assert_allclose(found.distances, brute(points.load(), 60)[1], atol=1e-6)


@pytest.mark.parametrize("candidates", [1, 8, 64])
def test_cells_find_what_an_inverted_file_of_faiss_finds(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    vectors = planted([30] * 60, noise=200, width=16, spread=0.8)[0].astype(np.float32)
    monkeypatch.setattr(module, "CELL", 11)
    monkeypatch.setattr(module, "PROBES", 4)
    monkeypatch.setattr(module, "_CANDIDATES", candidates)
    cells = module.Cells(vectors)
    coarse = faiss.IndexFlatIP(16)
    coarse.add(cells._centres)
    index = faiss.IndexIVFFlat(coarse, 16, coarse.ntotal, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = 4
    some = vectors if candidates > 1 else vectors[:50]
    cosines, places = index.search(some, 40)
    found = cells.search(some, 40)
    assert found.shape == places.shape and 0 < (places < 0).sum() < places.size / 2
    np.testing.assert_array_equal((found < 0).sum(axis=1), (places < 0).sum(axis=1))
    mine = np.where(found < 0, -9, np.einsum("ij,ikj->ik", some, vectors[found]))
    np.testing.assert_allclose(-np.sort(-mine, axis=1), np.where(places < 0, -9, cosines), atol=1e-5)


def test_a_query_is_not_compared_with_more_in_the_cells_of_more_points(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    compared = 0
    plain = faiss.knn

    def counting(queries: np.ndarray, among: np.ndarray, *rest: Any, **more: Any) -> Any:
        nonlocal compared
        compared += len(queries) * len(among)
        return plain(queries, among, *rest, **more)

    monkeypatch.setattr(module, "CELL", 16)
    monkeypatch.setattr(module, "PROBES", 4)
    shares = []
    for size in (20, 160):
        cells = module.Cells(planted([size] * 50, width=16, spread=0.8)[0].astype(np.float32))
        centres = size * 50 // 16
        some = np.random.default_rng(0).choice(size * 50, 500, replace=False)
        compared = 0
        with monkeypatch.context() as patched:
            patched.setattr(faiss, "knn", counting)
            cells.search(cells._vectors[some], 10)
        shares.append(compared / len(some) - centres)
    assert shares[1] < 1.2 * shares[0] < 1.2 * 4 * 16 * 2


def simplified_lof(vectors: np.ndarray, count: int) -> np.ndarray:
    """Schubert, Zimek, Kriegel 2014: the density is one over the distance to the k-th neighbour."""
    nearest, apart = brute(vectors, count)
    density = 1 / apart[:, -1]
    return np.array([np.mean(density[nearest[row]]) / density[row] for row in range(len(vectors))])


@pytest.mark.parametrize("count", [1, 5, 10])
def test_outlier_scores_are_by_definition(count: int) -> None:
    points = points_of(planted([80, 40], noise=10)[0])
    everything = np.arange(len(points))
    expected = simplified_lof(points.load(), count)
    search = Neighbours(points, everything).search(everything, 12)
    np.testing.assert_allclose(outlier_scores(points, everything, count, everything, None), expected, rtol=1e-4)
    np.testing.assert_allclose(outlier_scores(points, everything, count, everything, search), expected, rtol=1e-4)
    some = np.array([3, 20, 77])
    np.testing.assert_allclose(outlier_scores(points, some, count, everything, None), expected[some], rtol=1e-4)
    np.testing.assert_allclose(outlier_scores(points, some, count, everything, search), expected[some], rtol=1e-4)


def test_scores_do_not_depend_on_how_dense_a_group_is() -> None:
    tight, loose = planted([200], spread=0.1, seed=1)[0], planted([200], spread=1.0, seed=2)[0]
    points = points_of(np.concatenate([tight, loose]))
    scores = outlier_scores(points, np.arange(400), 10, np.arange(400), None)
    assert np.median(scores[:200]) == pytest.approx(np.median(scores[200:]), abs=0.05)
    assert 0.9 < np.median(scores) < 1.1


def test_scores_by_a_sample_rank_outliers_first() -> None:
    vectors, truth = planted([400] * 4, noise=8)
    points = points_of(vectors)
    sample = points.sample(500, seed=0)
    scores = outlier_scores(points, np.arange(len(points)), 10, sample, None)
    assert set(np.argsort(-scores)[:8]) == set(np.flatnonzero(truth < 0))


def test_copies_within_the_resolution_of_float16_do_not_make_others_infinitely_far() -> None:
    base = planted([1])[0][0]
    near = np.tile(base, (20, 1))
    near[np.arange(20), np.arange(20)] = np.nextafter(near[np.arange(20), np.arange(20)], np.float16(9))
    other = planted([1], seed=5)[0]
    points = points_of(np.concatenate([near, other]))
    scores = outlier_scores(points, np.arange(21), 5, np.arange(21), None)
    assert np.isfinite(scores).all()
    assert scores[:20] == pytest.approx(np.ones(20))
    apart = np.linalg.norm(points.load()[20] - points.load()[0])
    assert scores[20] == pytest.approx(apart / module.RESOLUTION, rel=0.01)
