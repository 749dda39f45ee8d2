"""Which of many images belong together when what resembles one of a group belongs to the group, through chains too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.duplicates.representatives import NONE, Near


def connect(kinds: Sequence[Near], count: int, settled: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Connected components of what resembles each other, in any of several ways.

    Every image is joined to the earliest that it resembles, then again and again to the earliest of another part, until
    no two parts touch (Borůvka's algorithm without weights). After the first look few images have a part to look for.

    Args:
        kinds: Ways to resemble.
        count: How many images there are.
        settled: So many of the best are groups of their own whatever they resemble. An image that resembles several of
            them is of the best one's group, and one in a chain between two of the group that fewer steps lead to.

    Returns:
        int64 (count,): the best image of the group of each; and int64 (count,): an image that each resembles, the next
        on the way to that one. Both are the image itself for the best of a group.
    """
    everything = np.ones(count, dtype=bool)
    ranks = np.arange(count)
    parts = np.where(ranks < settled, 0, ranks)
    edges: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    asking = [ranks >= settled] * len(kinds)
    touching = bool(count)
    while touching:
        before = len(edges)
        for number, kind in enumerate(kinds):
            if not asking[number].any():
                continue
            found = kind.first(asking[number], everything, parts if edges else None)
            # Parts only grow, so what touches no other part now never will.
            asking[number] = found != NONE
            if asking[number].any():
                later = np.flatnonzero(asking[number])
                edges.append((later, found[later]))
        touching = len(edges) > before
        if touching:
            parts = _merge(parts, edges[before:])
    return _spread(edges, parts, settled)


def _merge(parts: NDArray[np.int64], edges: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """The part of each image after more edges were found."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = (parts[np.concatenate(ends)] for ends in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(parts), len(parts)))
    merged: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return merged[parts]


def _spread(
    edges: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], parts: NDArray[np.int64], settled: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Walk from the best of every part, and from all that are settled, breadth first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order

    count = len(parts)
    roots = np.union1d(np.arange(settled), np.unique(parts, return_index=True)[1])
    start = count
    one = np.concatenate([np.full(len(roots), start), *(ends[0] for ends in edges), *(ends[1] for ends in edges)])
    other = np.concatenate([roots, *(ends[1] for ends in edges), *(ends[0] for ends in edges)])
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(count + 1, count + 1)).tocsr()
    graph.sort_indices()  # neighbours are walked to in order of rank
    came_from = breadth_first_order(graph, start, return_predecessors=True)[1][:count].astype(np.int64)
    links = np.where(came_from == start, np.arange(count), came_from)
    best = links
    while not np.array_equal(best, best[best]):
        best = best[best]
    return best, links
