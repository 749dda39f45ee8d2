"""Clusters as contact sheets, and a map of the embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.vectors import Vectors, holds_vectors
from labelmill.pipelines.report.limits import CLUSTER_IMAGES, CLUSTERS, MAP_POINTS
from labelmill.pipelines.report.picking import Lowest, draw
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.steps import Input, Step

NOISE = -1

LEAST_POINTS = 10
"""Embeddings below which there is no map."""

DIMENSIONS = 50
"""Principal components that t-SNE sees, as van der Maaten & Hinton (2008) did."""


class ClusterSheets:
    """Of each cluster its size, its name and its most typical images. For `cluster` and whatever writes its columns."""

    def __init__(self, run: RunReader, step: Step) -> None:
        self._step = step
        schema = step.operator.writes()
        self.column = Input(step.position, "cluster", schema.field("cluster").type)
        self._distance = Input(step.position, "distance", schema.field("distance").type)
        named = "name" in schema.names
        self._name = Input(step.position, "name", schema.field("name").type) if named else None
        self._counts: Counter[int] = Counter()
        self._names: dict[int, str] = {}
        self._typical: dict[int, Lowest] = {}

    @classmethod
    def all_of(cls, run: RunReader) -> list[ClusterSheets]:
        return [cls(run, step) for step in run.steps if {"cluster", "distance"} <= set(step.operator.writes().names)]

    def reads(self) -> Sequence[Input]:
        return [column for column in (self.column, self._distance, self._name) if column is not None]

    def see(self, shard: ShardView) -> None:
        column = shard.column(self.column)
        there = np.flatnonzero(pc.is_valid(column).to_numpy())
        clusters = column.take(there).to_numpy().astype(np.int64)
        distances = shard.column(self._distance).take(there).to_numpy(zero_copy_only=False).astype(np.float64)
        names = None if self._name is None else shard.column(self._name).take(there)
        for cluster in np.unique(clusters).tolist():
            mine = np.flatnonzero(clusters == cluster)
            self._counts[cluster] += len(mine)
            ids = shard.ids[there[mine]]
            figures = draw(ids) if cluster == NOISE else np.nan_to_num(distances[mine], nan=np.inf)
            self._typical.setdefault(cluster, Lowest(CLUSTER_IMAGES)).add(ids, figures)
            if names is not None and cluster not in self._names and names[int(mine[0])].as_py():
                self._names[cluster] = names[int(mine[0])].as_py()

    def finish(self) -> Figures:
        """The clusters, largest first; images in none come last."""
        ranked = sorted((one for one in self._counts if one != NOISE), key=lambda one: (-self._counts[one], one))
        shown = ranked[:CLUSTERS] + [NOISE] * (NOISE in self._counts)
        return {
            "step": self._step.name,
            "clusters": len(ranked),
            "noise": self._counts[NOISE],
            "shown": [
                {"cluster": one, "name": self._names.get(one, ""), "count": self._counts[one],
                 "images": self._typical[one].ids.tolist()}
                for one in shown
            ],
        }  # fmt: skip


class EmbeddingMap:
    """Embeddings drawn evenly, laid out in two dimensions so that like images are near each other."""

    def __init__(self, run: RunReader, vectors: Input, colours: dict[str, Input]) -> None:
        self._run, self._vectors, self._colours = run, vectors, colours
        self._picked = Lowest(MAP_POINTS)
        self._points: NDArray[np.float32] = np.empty((0, vectors.type.list_size), dtype=np.float32)
        self._values: dict[str, list[Any]] = {name: [] for name in ("outcome", *colours)}

    @classmethod
    def all_of(cls, run: RunReader, clusters: Sequence[ClusterSheets]) -> list[EmbeddingMap]:
        """One for each step that makes embeddings; coloured by cluster, by image class, by outcome."""
        colours = {"cluster": clusters[-1].column} if clusters else {}
        classes = run.columns(lambda step, field: field.name == "class" and step.operator_name == "classify")
        if classes:
            colours["class"] = classes[-1]
        return [cls(run, column, colours) for column in run.columns(lambda _, field: holds_vectors(field.type))]

    def reads(self) -> Sequence[Input]:
        return [self._vectors, *self._colours.values()]

    def see(self, shard: ShardView) -> None:
        column = shard.column(self._vectors)
        there = np.flatnonzero(pc.is_valid(column).to_numpy())
        drawn = draw(shard.ids[there])
        likely = drawn < (self._picked.figures[-1] if len(self._picked.figures) == MAP_POINTS else np.inf)
        there, drawn = there[likely], drawn[likely]
        vectors = Vectors(column.take(there))
        usable = vectors.usable
        there, drawn = there[usable], drawn[usable]
        points = np.concatenate([self._points, vectors.take(np.flatnonzero(usable))])
        best = self._picked.add(shard.ids[there], drawn)
        self._points = points[best]
        told = {name: shard.column(column).take(there).to_pylist() for name, column in self._colours.items()}
        told["outcome"] = [shard.outcome.final[row] for row in there.tolist()]
        for name, values in self._values.items():
            both = values + told[name]
            self._values[name] = [both[place] for place in best.tolist()]

    @property
    def picked(self) -> list[int]:
        return self._picked.ids.tolist() if len(self._picked.ids) >= LEAST_POINTS else []

    def finish(self) -> Figures | None:
        """The points, x and y in 0…1 and what they can be coloured by; None if there are too few."""
        if not self.picked:
            return None
        order = np.argsort(self._picked.ids)
        places = layout(self._points[order])
        return {
            "step": self._run.steps[self._vectors.step or 0].name,
            "points": [
                {"image": int(self._picked.ids[place]), "x": round(float(x), 4), "y": round(float(y), 4),
                 **{name: values[place] for name, values in self._values.items()}}
                for place, (x, y) in zip(order.tolist(), places, strict=True)
            ],
            "colours": [*self._colours, "outcome"],
        }  # fmt: skip


def layout(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Place points in the plane: principal components, then t-SNE (van der Maaten & Hinton 2008) from scikit-learn.

    One thread and a fixed start, so that a machine always gives the same.

    Args:
        points: (n, dimensions), n at least `LEAST_POINTS`.

    Returns:
        (n, 2) in 0…1.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        components = min(DIMENSIONS, *points.shape)
        spread = PCA(components, svd_solver="full").fit_transform(points.astype(np.float64))
        if np.allclose(spread, 0):
            return np.full((len(points), 2), 0.5)
        places = TSNE(
            init=spread[:, :2] / spread[:, 0].std() * 1e-4,
            perplexity=min(30.0, (len(points) - 1) / 3),
            random_state=0,
            n_jobs=1,
        ).fit_transform(spread)
    low, high = places.min(axis=0), places.max(axis=0)
    return np.asarray((places - low) / np.where(high > low, high - low, 1), dtype=np.float64)
