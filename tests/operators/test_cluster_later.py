"""`cluster`: images that arrive later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import adjusted_rand_score

from labelmill.operators.base import TableResult
from tests.operators.clustering.planted import planted, unit
from tests.operators.clustering.steps import NAMED, SEVERAL, SIZES, WIDTH, build, earlier, run, table, values


class Later:
    """A first run over some planted images, and what a second one gives."""

    def __init__(self, params: dict[str, Any], vectors: Any, noise: int = 0) -> None:
        self.operator = build(**params)
        self.rows = table(vectors)
        self.first = run(self.operator, self.rows)
        self.old = earlier(self.operator, self.rows, self.first)

    def then(self, vectors: Any, first: int = 10_000) -> TableResult:
        return run(self.operator, table(vectors, first=first), self.old)

    def and_then(self, vectors: Any, first: int = 10_000) -> TableResult:
        rows = table(vectors, first=first)
        result = run(self.operator, rows, self.old)
        self.old = pa.concat_tables([self.old, earlier(self.operator, rows, result)])
        return result


@SEVERAL
def test_later_images_join_the_clusters_there_are(params: dict[str, Any]) -> None:
    vectors, truth = planted([size * 2 for size in SIZES])
    half = len(vectors) // 2
    run_ = Later(params, vectors[:half])
    names = dict(zip(truth[:half].tolist(), values(run_.first, "cluster"), strict=True))
    found = values(run_.then(vectors[half:]), "cluster")
    joined = [cluster >= 0 for cluster in found]
    assert np.mean(joined) > 0.8
    assert all(
        cluster == names[group] for cluster, group in zip(found, truth[half:].tolist(), strict=True) if cluster >= 0
    )


@SEVERAL
def test_a_later_copy_gets_what_the_earlier_image_got(params: dict[str, Any]) -> None:
    vectors, _ = planted(SIZES, noise=20, spread=1.0)
    run_ = Later({**params, **NAMED}, vectors)
    result = run_.then(vectors)
    for name in ("cluster", "name"):
        assert values(result, name) == values(run_.first, name)
    for name in ("distance", "outlier"):
        wanted = np.array(values(run_.first, name), dtype=float)
        np.testing.assert_allclose(np.array(values(result, name), dtype=float), wanted, rtol=1e-5, atol=1e-6)


def test_later_images_unlike_the_earlier_make_clusters_of_their_own() -> None:
    vectors, truth = planted([60, 50, 40, 30], seed=2)
    run_ = Later({}, vectors[truth < 2])
    result = run_.and_then(vectors[truth >= 2])
    found = np.array(values(result, "cluster"))
    assert adjusted_rand_score(truth[truth >= 2], found) == 1
    assert found[(truth[truth >= 2]).tolist().index(2)] == 2
    assert set(found.tolist()) == {2, 3}
    again = run_.then(vectors, first=20_000)
    assert [values(again, "cluster")[row] for row in np.flatnonzero(truth >= 2)] == found.tolist()
    assert max(values(again, "distance")) == pytest.approx(
        max(*values(run_.first, "distance"), *values(result, "distance")), abs=1e-6
    )


def test_a_few_later_images_unlike_the_earlier_are_noise() -> None:
    vectors, truth = planted([60, 50, 3], spread=0.3)
    run_ = Later({}, vectors[truth < 2])
    result = run_.then(vectors[truth == 2])
    assert values(result, "cluster") == [-1] * 3
    assert min(values(result, "outlier")) > 1.3
    forced = Later({"method": "kmeans", "clusters": 2}, vectors[truth < 2])
    assert set(values(forced.then(vectors[truth == 2]), "cluster")) <= {0, 1}


def test_a_cluster_does_not_grow_beyond_its_earlier_images() -> None:
    random = np.random.default_rng(0)
    base, side = np.eye(WIDTH)[:2]
    angles = random.uniform(-0.2, 0.2, 60)
    fan = np.cos(angles)[:, None] * base + np.sin(angles)[:, None] * side + random.normal(size=(60, WIDTH)) * 0.02
    far, _ = planted([40], spread=0.2, seed=4)
    run_ = Later({"min_size": 5}, unit(np.concatenate([fan, far])).astype(np.float16))
    assert len(set(values(run_.first, "cluster")) - {-1}) == 2
    # One step beyond the end after another: each has the one before it as its nearest neighbour.
    for step, angle in enumerate((0.3, 0.4, 0.5)):
        later = [(np.cos(angle) * base + np.sin(angle) * side).astype(np.float16)]
        assert values(run_.and_then(later, first=20_000 + step), "cluster") == [-1]


def test_after_a_first_run_without_clusters_there_are_some() -> None:
    vectors, truth = planted([40, 30])
    run_ = Later({}, vectors[:4])
    assert values(run_.first, "cluster") == [-1] * 4
    found = values(run_.then(vectors[4:]), "cluster")
    assert adjusted_rand_score(truth[4:], found) == 1


def test_nothing_new_gives_nothing() -> None:
    run_ = Later({}, planted(SIZES)[0])
    assert values(run_.then([]), "cluster") == []


def test_names_stay_when_images_arrive() -> None:
    vectors, _ = planted(SIZES)
    run_ = Later(NAMED, vectors)
    index = run_.old.column_names.index("name")
    said = [None if name is None else f"said before: {name}" for name in values(run_.first, "name")]
    run_.old = run_.old.set_column(index, "name", pa.array(said, pa.string()))
    assert values(run_.then(vectors[:50]), "name") == said[:50]
