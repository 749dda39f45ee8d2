"""k-means, merging, and what holds for both."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from labelmill.operators.clustering import centres as module
from labelmill.operators.clustering.centres import (
    dissolve,
    distances,
    k_means,
    k_means_clusters,
    means,
    merged_clusters,
    nearest_centres,
    number_by_size,
    usual_count,
)
from tests.operators.clustering.planted import planted, points_of, unit

MANY = 10**6


@pytest.mark.parametrize(("images", "count"), [(0, 1), (1, 1), (2, 1), (200, 10), (20_000, 100), (10**7, 1000)])
def test_the_usual_number_of_clusters(images: int, count: int) -> None:
    assert usual_count(images) == count


def test_means_and_distances_are_by_definition() -> None:
    vectors, truth = planted([40, 30, 20], noise=10)
    points = points_of(vectors)
    wide = unit(vectors.astype(np.float64))
    expected = unit(np.stack([wide[truth == group].mean(axis=0) for group in range(3)]))
    found = means(points, truth, 4)
    np.testing.assert_allclose(found[:3], expected, atol=1e-6)
    assert not found[3].any()
    apart = distances(points, truth, found)
    assert np.isnan(apart[truth < 0]).all()
    inside = truth >= 0
    cosines = (wide[inside] * expected[truth[inside]]).sum(axis=1)
    np.testing.assert_allclose(apart[inside], 1 - cosines, atol=1e-6)


def test_a_cluster_whose_vectors_cancel_out_has_no_direction() -> None:
    points = points_of(np.array([[1, 0], [-1, 0]], dtype=np.float16))
    labels = np.array([0, 0])
    found = means(points, labels, 1)
    assert not found.any()
    assert distances(points, labels, found).tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_k_means_finds_planted_clusters(seed: int) -> None:
    vectors, truth = planted([300, 200, 100, 100, 50, 20, 20, 20], seed=seed)
    assert adjusted_rand_score(truth, k_means_clusters(points_of(vectors), 8, 1, seed, MANY)) > 0.99


def test_k_means_is_trained_on_a_sample_and_given_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = planted([500, 400, 300])
    seen: list[int] = []
    train = faiss.Kmeans.train
    monkeypatch.setattr(faiss.Kmeans, "train", lambda self, x, **more: seen.append(len(x)) or train(self, x, **more))
    labels = k_means_clusters(points_of(vectors), 3, 1, 0, most=150)
    assert seen == [150]
    assert adjusted_rand_score(truth, labels) > 0.99


def test_more_centres_than_merging_can_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVES", 40)
    points = points_of(planted([10] * 40, spread=0.1)[0])
    found = k_means(points, 40, 0, MANY)
    assert found.shape == (40, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, k_means(points, 40, 0, MANY))
    assert (found != k_means(points, 40, 1, MANY)).any()


def test_k_means_with_as_many_centres_as_points() -> None:
    points = points_of(planted([5])[0])
    for count in (5, 50):
        np.testing.assert_array_equal(k_means(points, count, 0, MANY), points.load())
        assert sorted(k_means_clusters(points, count, 1, 0, MANY)) == [0, 1, 2, 3, 4]


def test_threads_do_not_change_k_means() -> None:
    points = points_of(planted([150] * 8, spread=1.5, width=64)[0])
    found = []
    threads = faiss.omp_get_max_threads()
    try:
        for number in (1, 4):
            faiss.omp_set_num_threads(number)
            found.append(k_means(points, 20, 0, MANY))
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(*found)


def test_equally_near_centres_go_to_the_first() -> None:
    points = points_of(planted([50])[0])
    vectors = points.load()
    same = np.stack([vectors[3], vectors[0], vectors[0], vectors[0]])
    assert nearest_centres(points, same)[0] == 1
    assert set(nearest_centres(points, same).tolist()) == {0, 1}
    assert set(nearest_centres(points, same[2:]).tolist()) == {0}


@pytest.mark.parametrize("seed", range(3))
def test_merging_finds_how_many_planted_clusters_there_are(seed: int) -> None:
    vectors, truth = planted([100, 80, 60, 40, 20, 15, 15], seed=seed)
    assert adjusted_rand_score(truth, merged_clusters(points_of(vectors), None, 1, seed, MANY)) > 0.99


def test_merging_stops_at_the_number_asked_for() -> None:
    points = points_of(planted([100, 80, 60])[0])
    for count in (1, 2, 3, 7):
        assert len(set(merged_clusters(points, count, 1, 0, MANY).tolist())) == count


def test_merging_of_many_starts_from_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = planted([300, 200, 100, 60])
    monkeypatch.setattr(module, "LEAVES", 200)
    monkeypatch.setattr(module, "GROUPS", 60)
    labels = merged_clusters(points_of(vectors), None, 1, 0, MANY)
    assert adjusted_rand_score(truth, labels) > 0.99


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_merging_a_few_points(count: int) -> None:
    labels = merged_clusters(points_of(planted([count])[0]), None, 1, 0, MANY)
    assert len(labels) == count
    assert len(set(labels.tolist())) <= max(2, count - 1)


def test_small_clusters_dissolve_into_the_nearest() -> None:
    vectors, truth = planted([40, 30, 5, 4], spread=0.3)
    points = points_of(vectors)
    middles = means(points, truth, 4)
    found = dissolve(points, truth, middles, 10)
    big = truth < 2
    assert (found[big] == truth[big]).all()
    cosines = points.load()[~big] @ middles[:2].T
    assert (found[~big] == cosines.argmax(axis=1)).all()
    assert (dissolve(points, truth, middles, 4) == truth).all()
    assert set(dissolve(points, truth, middles, 100).tolist()) == {0}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(1, 3)), max_size=30))
def test_numbers_are_by_size_then_by_first_key(rows: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in rows], dtype=np.int64)
    copies = np.array([count for _, count in rows], dtype=np.int64)
    found = number_by_size(labels, copies)
    assert ((found < 0) == (labels < 0)).all()
    groups = {label for label in labels.tolist() if label >= 0}
    ranked = sorted(groups, key=lambda label: (-copies[labels == label].sum(), labels.tolist().index(label)))
    for number, label in enumerate(ranked):
        assert (found[labels == label] == number).all()
