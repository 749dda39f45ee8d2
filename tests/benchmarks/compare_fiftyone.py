"""FiftyOne's side of `tests.benchmarks.compare`: what its brain's `compute_near_duplicates` does to vectors.

The package itself needs a MongoDB, which it downloads when it is installed. Its method (fiftyone.brain 0.27: the
``sklearn`` index and `find_duplicates`), with the library that it calls: centre the vectors; up to 15,000 of them take
all distances at once, more the neighbours within a radius; remove, in order, what is near an earlier one that stays;
and give each removed one the nearest that stays.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from compare_side import Request, serve

AT_ONCE = 15_000


def vectors(request: Request) -> Any:
    import numpy as np
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    given = np.load(request["vectors"])
    apart = 1 - request["threshold"]

    def work() -> list[int]:
        rows = given - given.mean(axis=0, keepdims=True)
        count = len(rows)
        if count <= AT_ONCE:
            distances = pairwise_distances(rows, metric="cosine")
            np.fill_diagonal(distances, np.nan)
            near = [np.nonzero(row <= apart)[0] for row in distances]
        else:
            rows = normalize(rows)
            near = NearestNeighbors().fit(rows).radius_neighbors(radius=np.sqrt(2 * apart), return_distance=False)
        stay = set(range(count))
        for row in range(count):
            if row in stay:
                stay -= {other for other in near[row] if other > row}
        kept, removed = sorted(stay), sorted(set(range(count)) - stay)
        if kept and removed:
            if count <= AT_ONCE:
                np.nanargmin(distances[np.ix_(removed, kept)], axis=1)
            else:
                NearestNeighbors().fit(rows[kept]).kneighbors(rows[removed], n_neighbors=1)
        return removed

    return work, lambda removed: {"removed": removed}


if __name__ == "__main__":
    serve({"vectors": vectors}, f"FiftyOne's method, scikit-learn {version('scikit-learn')}")
