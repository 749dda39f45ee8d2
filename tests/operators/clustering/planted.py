"""Vectors whose clusters are known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.results import to_array
from labelmill.operators.clustering.points import Points, read_points
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.columns.vectors import Vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def planted(
    sizes: list[int], noise: int = 0, width: int = 32, spread: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Groups around random directions, and vectors in directions of their own; shuffled.

    Returns:
        float16 (n, width), unit length; and int64 (n,) the group, -1 for none.
    """
    random = np.random.default_rng(seed)
    middles = unit(random.normal(size=(len(sizes), width)))
    truth = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(noise, -1)])
    apart = unit(random.normal(size=(len(truth), width)))
    vectors = np.where(truth[:, None] >= 0, middles[truth] + spread * apart, apart)
    order = random.permutation(len(truth))
    return unit(vectors).astype(np.float16)[order], truth[order]


def points_of(vectors: np.ndarray) -> Points:
    """Points whose keys are in the order of the rows."""
    column = pa.chunked_array([to_array(list(vectors), embedding(vectors.shape[1]))])
    keys = pa.chunked_array([[f"{row:07d}" for row in range(len(vectors))]], pa.string())
    return read_points(Vectors(column), keys)[0]
