"""fastdup's side of `tests.benchmarks.compare`: copies by the network that it ships, and among ready vectors.

It finds the `NEIGHBOURS` nearest of each by an approximate index. A pair is a copy from the threshold on (for pictures
its own default for components, 0.96), and of what pairs connect the first stays, as its documentation advises.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compare_side import Request, serve

NEIGHBOURS = 5
COMPONENT = 0.96


def copies(request: Request) -> Any:
    import fastdup

    finder = fastdup.create(work_dir=request["scratch"], input_dir=request["images"])

    def work() -> Any:
        finder.run(num_threads=1, nearest_neighbors_k=NEIGHBOURS, print_summary=False)
        return finder.similarity()

    def tell(found: Any) -> dict[str, Any]:
        near = found[found["distance"] >= COMPONENT]
        names = [[Path(path).name for path in near[column]] for column in ("filename_from", "filename_to")]
        return {"pairs": [list(pair) for pair in zip(*names, strict=True)]}

    return work, tell


def vectors(request: Request) -> Any:
    import fastdup
    import numpy as np
    import pandas

    rows = np.load(request["vectors"])
    names = pandas.DataFrame({"filename": [f"{row:09d}.jpg" for row in range(len(rows))]})
    finder = fastdup.create(work_dir=request["scratch"])

    def work() -> Any:
        finder.run(
            annotations=names,
            embeddings=rows,
            num_threads=1,
            nearest_neighbors_k=NEIGHBOURS,
            threshold=request["threshold"],
            print_summary=False,
        )
        return finder.similarity()

    def tell(found: Any) -> dict[str, Any]:
        near = found[found["distance"] >= request["threshold"]]
        ends = [[int(Path(path).stem) for path in near[column]] for column in ("filename_from", "filename_to")]
        first = list(range(len(rows)))

        def root(row: int) -> int:
            while first[row] != row:
                first[row] = first[first[row]]
                row = first[row]
            return row

        for one, other in zip(*ends, strict=True):
            low, high = sorted((root(one), root(other)))
            first[high] = low
        return {"removed": [row for row in range(len(first)) if root(row) != row]}

    return work, tell


if __name__ == "__main__":
    # It would report each run to its makers, and ask for a newer version.
    os.environ["SENTRY_OPT_OUT"] = os.environ["FASTDUP_PRODUCTION"] = "1"
    serve({"copies": copies, "vectors": vectors}, f"fastdup {version('fastdup')}")
