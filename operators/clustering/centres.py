"""Clusters around centres: k-means, and trees of merges that are cut. All images are in one; none is noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.clustering.points import Points
from labelmill.operators.clustering.similar import most_similar, on_gpu

MOST = 1_000
"""Clusters that are made when nobody says how many."""

LEAVES = 4_096
"""Up to as many points are merged one by one."""

GROUPS = 2_048
"""Of more points, as many groups are merged, which k-means made first."""

SAMPLE, LEAST_SAMPLE = 64, 16_384
"""Points per cluster that k-means is trained on, and how many at least in all."""

_ROUNDS = 20
_TIE = 1e-5


def usual_count(images: int) -> int:
    """√(n/2) clusters (Mardia, Kent, Bibby 1979, Multivariate analysis, section 13.6), at most 1,000."""
    return int(np.clip(round(np.sqrt(images / 2)), 1, MOST))


def means(points: Points, labels: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """The centre of each cluster: the mean of its points, scaled to length 1.

    Args:
        points: Which points there are.
        labels: int64 (points,): 0…count - 1; others have no cluster.
        count: How many clusters.

    Returns:
        float32 (count, dimensions); zeros for a cluster without points, or whose points cancel out.
    """
    sums = np.zeros((count, points.vectors.dimensions))
    for members, vectors in points.blocks():
        mine = labels[members]
        order = np.argsort(mine, kind="stable")
        order = order[mine[order] >= 0]
        if len(order):
            present, starts = np.unique(mine[order], return_index=True)
            sums[present] += np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 1e-6).astype(np.float32)


def distances(points: Points, labels: NDArray[np.int64], centres: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distance, 0…2, of each point to the centre of its cluster; NaN for one without."""
    apart = np.full(len(points), np.nan)
    for members, vectors in points.blocks():
        mine = labels[members]
        inside = mine >= 0
        cosines = np.einsum("ij,ij->i", vectors[inside], centres[mine[inside]], dtype=np.float64)
        apart[members[inside]] = np.clip(1 - cosines, 0, 2)
    return apart


def nearest_centres(points: Points, centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """The centre with the highest cosine for each point; the first of equal ones."""
    nearest = np.zeros(len(points), dtype=np.int64)
    if len(centres) == 1:
        return nearest
    for members, vectors in points.blocks():
        cosines, found = most_similar(vectors, centres, 2)
        # Rounding depends on threads and on what stands in the block: close calls are made again, each by itself.
        close = np.flatnonzero(cosines[:, 0] - cosines[:, 1] < _TIE)
        if len(close):
            found[close, 0] = [_nearest_exactly(vector, centres) for vector in vectors[close]]
        nearest[members] = found[:, 0]
    return nearest


def _nearest_exactly(vector: NDArray[np.float32], centres: NDArray[np.float32]) -> int:
    cosines = centres @ vector
    near = np.flatnonzero(cosines > cosines.max() - 2 * _TIE)
    return int(near[(centres[near].astype(np.float64) * vector).sum(axis=1).argmax()])


def k_means(points: Points, count: int, seed: int, most: int) -> NDArray[np.float32]:
    """Spherical k-means (FAISS) on a sample.

    Up to 1,024 centres begin as clusters that Ward's method finds in 4,096 points (Milligan 1980): of random points,
    even far apart, several often lie in one large cluster and none in a small one, and k-means does not mend that.
    More centres begin as random points. One thread, so that the number of threads cannot change a sum, and so a centre.

    Args:
        points: Which points there are.
        count: How many centres; as many as points if there are fewer.
        seed: Decides samples and random points.
        most: The sample has 64 points for each centre and at least 16,384, but no more than this unless there are more
            centres.

    Returns:
        float32 (centres, dimensions), unit length.
    """
    if count >= len(points):
        return points.load()
    first = None
    if count <= LEAVES // 4:
        few = points.subset(points.sample(LEAVES, seed))
        first = means(few, _cut(_merges(few.load()), count), count)
    sample = points.sample(max(count, min(max(count * SAMPLE, LEAST_SAMPLE), most)), seed)
    return train(points.load(sample), count, seed, _ROUNDS, first)


def train(
    sample: NDArray[np.float32],
    count: int,
    seed: int,
    rounds: int,
    first: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Rounds of spherical k-means over all vectors of a sample, from random ones of them if nothing is given.

    With more threads than one, sums are rounded in another order.
    """
    import faiss
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        training = faiss.Kmeans(
            sample.shape[1],
            count,
            niter=rounds,
            spherical=True,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(sample),
            gpu=on_gpu(),
        )
        training.train(sample, init_centroids=first)
    assert training.centroids is not None
    return training.centroids


def _merges(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ward's merges of at least two unit vectors, as `scipy.cluster.hierarchy.linkage` gives them."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform
    from threadpoolctl import threadpool_limits

    wide = vectors.astype(np.float64)
    with threadpool_limits(1):
        apart = np.sqrt(np.maximum(2 - 2 * (wide @ wide.T), 0))
    np.fill_diagonal(apart, 0)
    merges: NDArray[np.float64] = linkage(squareform(apart, checks=False), method="ward")
    return merges


def _cut(merges: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The cluster of each vector when there are `count` left."""
    from scipy.cluster.hierarchy import fcluster

    ranks = np.arange(len(merges), dtype=np.float64)
    labels: NDArray[np.int64] = fcluster(merges, len(merges) - count, "monocrit", monocrit=ranks).astype(np.int64) - 1
    return labels


def k_means_clusters(points: Points, count: int | None, min_size: int, seed: int, most: int) -> NDArray[np.int64]:
    """The cluster of each point: that of its nearest centre.

    Args:
        points: Which points there are.
        count: How many clusters; None for the usual number.
        min_size: Images of the smallest cluster; see `dissolve`.
        seed: See `k_means`.
        most: See `k_means`.
    """
    count = min(count or usual_count(len(points)), len(points))
    centres = k_means(points, count, seed, most)
    return dissolve(points, nearest_centres(points, centres), centres, min_size)


def merged_clusters(points: Points, count: int | None, min_size: int, seed: int, most: int) -> NDArray[np.int64]:
    """Clusters of Ward's method (1963): those two are merged whose union has the least variance, again and again.

    More than 4,096 points are first put into 2,048 groups by k-means, and the groups' centres are merged (Wong 1982, A
    hybrid clustering method for identifying high-density clusters).

    Args:
        points: Which points there are.
        count: How many clusters; None stops before the merge that costs most against the one before it (Thorndike
            1953, Who belongs in the family?), with 2 to √n clusters.
        min_size: Images of the smallest cluster; see `dissolve`.
        seed: Of the k-means.
        most: See `k_means`.
    """
    if len(points) <= LEAVES:
        centres, leaves = points.load(), np.arange(len(points))
    else:
        centres = k_means(points, GROUPS, seed, most)
        leaves = nearest_centres(points, centres)
    if len(centres) == 1:
        return leaves
    merges = _merges(centres)
    count = min(count or _elbow(merges[:, 2], len(points)), len(centres))
    labels = _cut(merges, count)[leaves]
    return dissolve(points, labels, means(points, labels, count), min_size)


def _elbow(heights: NDArray[np.float64], points: int) -> int:
    """The number of clusters after which merging costs most, against what it cost before."""
    most = max(2, int(np.sqrt(points)))
    heights = np.maximum(heights[::-1], 1e-9)  # heights[c - 2] is the cost of going from c clusters to c - 1
    ratios = heights[: most - 1][: len(heights) - 1] / heights[1:most]
    return 2 + int(ratios.argmax()) if len(ratios) else 1


def dissolve(
    points: Points, labels: NDArray[np.int64], centres: NDArray[np.float32], min_size: int
) -> NDArray[np.int64]:
    """Give the points of clusters with fewer than `min_size` images to the nearest of the others.

    If all are that small, the largest takes everything.
    """
    sizes = np.bincount(labels, weights=points.copies, minlength=len(centres))
    small = sizes < min_size
    if not small[labels].any():
        return labels
    if small.all():
        small[sizes.argmax()] = False
    stay = np.flatnonzero(~small)
    moving = np.flatnonzero(small[labels])
    labels = labels.copy()
    labels[moving] = stay[nearest_centres(points.subset(moving), centres[stay])]
    return labels


def number_by_size(labels: NDArray[np.int64], copies: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number clusters from 0: the one with most images first, of equal ones that with the smallest key.

    Args:
        labels: int64 (points,), in order of keys; negative is noise.
        copies: int64 (points,): images of each point.
    """
    inside = np.flatnonzero(labels >= 0)
    found, first, inverse = np.unique(labels[inside], return_index=True, return_inverse=True)
    sizes = np.bincount(inverse, weights=copies[inside], minlength=len(found))
    numbers = np.empty(len(found), dtype=np.int64)
    numbers[np.lexsort((first, -sizes))] = np.arange(len(found))
    numbered = np.full(len(labels), -1, dtype=np.int64)
    numbered[inside] = numbers[inverse]
    return numbered
