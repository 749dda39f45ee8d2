"""HDBSCAN's tree and labels against scikit-learn and scipy, which look at all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from labelmill.operators.clustering import density
from labelmill.operators.clustering.density import density_clusters, spanning_tree
from labelmill.operators.clustering.neighbours import Neighbourhood, Neighbours
from tests.operators.clustering.planted import planted, points_of


def neighbours(vectors: np.ndarray, count: int) -> tuple[np.ndarray, Neighbourhood]:
    points = points_of(vectors)
    assert len(points) == len(vectors)
    everything = np.arange(len(points))
    return points.load(), Neighbours(points, everything, exact=True).search(everything, count)


def all_pairs(vectors: np.ndarray, min_samples: int) -> np.ndarray:
    """Mutual reachability, by definition."""
    apart = squareform(pdist(vectors.astype(np.float64)))
    core = np.sort(apart, axis=1)[:, min_samples - 1]
    return np.maximum(np.maximum(core[:, None], core[None]), apart)


@pytest.mark.parametrize("few_pairs", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    noise=st.integers(0, 15),
    min_samples=st.integers(2, 8),
    more=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_the_tree_is_the_lightest(
    few_pairs: bool, sizes: list[int], noise: int, min_samples: int, more: int, seed: int
) -> None:
    vectors, _ = planted(sizes, noise, width=8, seed=seed)
    if len(vectors) < min_samples:
        return
    unit, around = neighbours(vectors, min_samples - 1 + more)
    with pytest.MonkeyPatch.context() as patch:
        if few_pairs:
            patch.setattr(density, "PAIRS", 1)
        first, second, weights = spanning_tree(unit, around, around.distances[:, min_samples - 2])
    assert len(weights) == len(vectors) - 1
    reach = all_pairs(unit, min_samples)
    np.testing.assert_allclose(weights, reach[first, second], atol=1e-6)
    pieces = np.arange(len(vectors))
    for one, other in zip(first, second, strict=True):
        assert pieces[one] != pieces[other]
        pieces[pieces == pieces[other]] = pieces[one]
    expected = minimum_spanning_tree(reach + (1 - np.eye(len(reach))) * 1e-12)
    assert weights.sum() == pytest.approx(expected.sum(), abs=1e-5)


@pytest.mark.parametrize(("min_size", "min_samples", "seed"), [(10, 10, 0), (5, 5, 1), (20, 8, 2), (8, 3, 3)])
def test_clusters_are_those_of_scikit_learn(min_size: int, min_samples: int, seed: int) -> None:
    vectors, _ = planted([200, 80, 40, 30, 25, 12], noise=120, spread=0.9, seed=seed)
    unit, around = neighbours(vectors, 2 * min_samples)
    expected = HDBSCAN(min_cluster_size=min_size, min_samples=min_samples, algorithm="brute", copy=True)
    labels = expected.fit(unit.astype(np.float64)).labels_
    assert labels.max() >= 2 and (labels < 0).any()
    found = density_clusters(unit, around, min_size, min_samples)
    # Edges that weigh the same may be taken in another order, and an image at the border change sides.
    assert adjusted_rand_score(labels, found) > 0.99
    assert labels.max() == found.max()


def test_fewer_vectors_than_a_cluster_has_are_noise() -> None:
    vectors, _ = planted([9], spread=0.1)
    unit, around = neighbours(vectors, 20)
    assert density_clusters(unit, around, 10, 10).tolist() == [-1] * 9
    assert density_clusters(unit[:0], Neighbourhood(around.points[:0], around.distances[:0]), 10, 10).tolist() == []
