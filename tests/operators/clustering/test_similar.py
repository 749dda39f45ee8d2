"""`similar`: the same on a CPU as FAISS's own, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from labelmill.operators.clustering import similar
from labelmill.operators.clustering.centres import train
from labelmill.operators.clustering.similar import most_similar


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_finds_what_sorting_all_products_finds() -> None:
    queries, among = unit(30, 0), unit(200, 1)
    cosines, places = most_similar(queries, among, 7)
    truth = queries.astype(np.float64) @ among.T
    assert np.array_equal(places, np.argsort(-truth, axis=1)[:, :7])
    np.testing.assert_allclose(cosines, np.take_along_axis(truth, places, 1), atol=1e-6)


def test_a_gpu_that_faiss_sees_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed: FAISS's functions for one are stood in for by those for the CPU."""
    asked: list[tuple[int, int]] = []

    def knn_gpu(resources: Any, queries: np.ndarray, among: np.ndarray, count: int, *, metric: int) -> Any:
        assert resources == "memory"
        asked.append((len(queries), count))
        return faiss.knn(queries, among, count, metric=metric)

    queries, among = unit(30, 0), unit(3000, 1)
    alone = [most_similar(queries, among, count) for count in (5, 2500)]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(similar, "_resources", lambda: "memory")
    there = [most_similar(queries, among, count) for count in (5, 2500)]
    assert asked == [(30, 5)], "a GPU cannot give as many as 2,500"
    for one, other in zip(alone, there, strict=True):
        np.testing.assert_array_equal(one[1], other[1])


def test_k_means_is_told_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    plain = faiss.Kmeans

    def kmeans(*sizes: int, gpu: bool, **more: Any) -> Any:
        told.append(gpu)
        return plain(*sizes, **more)

    monkeypatch.setattr(faiss, "Kmeans", kmeans)
    here = train(unit(400, 2), 10, seed=0, rounds=3)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    there = train(unit(400, 2), 10, seed=0, rounds=3)
    assert told == [False, True]
    np.testing.assert_array_equal(here, there)


@pytest.mark.skipif(not similar.on_gpu(), reason="FAISS sees no GPU")
def test_cpu_and_gpu_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, among = unit(500, 0), unit(5000, 1)
    there = most_similar(queries, among, 10)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    here = most_similar(queries, among, 10)
    np.testing.assert_allclose(there[0], here[0], atol=1e-4)
    assert (there[1] == here[1]).mean() > 0.999
