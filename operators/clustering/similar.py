"""Brute-force search by cosine (FAISS): on a GPU where FAISS has one, else on the CPU."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_ON_GPU = 2048
"""Neighbours that FAISS finds on a GPU, at most."""


def most_similar(
    queries: NDArray[np.float32], among: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Those with the highest inner products.

    Args:
        queries: float32 (q, d).
        among: float32 (n, d).
        count: How many, at most n.

    Returns:
        Products float32 (q, count), the highest first, and places int64 (q, count). Those of a CPU and of a GPU differ
        by rounding, so equally near ones may come in another order.
    """
    import faiss

    search: Any = partial(faiss.knn_gpu, _resources()) if on_gpu() and count <= MOST_ON_GPU else faiss.knn
    products, places = search(queries, among, count, metric=faiss.METRIC_INNER_PRODUCT)
    return products, places


def on_gpu() -> bool:
    """Whether FAISS was built for GPUs and sees one."""
    import faiss

    return bool(faiss.get_num_gpus())


@lru_cache(maxsize=1)
def _resources() -> Any:
    """FAISS's working memory on the GPU, once for the process."""
    import faiss

    return faiss.StandardGpuResources()
