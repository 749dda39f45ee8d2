"""cluster: which images show alike things, how typical each is, and how far from everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from labelmill.operators.base import KEPT, DatasetOperator, Decision, Needs, OperatorParams, TableResult, tuning
from labelmill.operators.clustering import centres, density
from labelmill.operators.clustering.neighbours import Neighbourhood, Neighbours, outlier_scores
from labelmill.operators.clustering.points import Points, read_points
from labelmill.operators.columns.rows import old_then_new
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.columns.vectors import Vectors, check_vectors
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.engines.embedding.encoder import Template, class_texts
from labelmill.operators.engines.registry import require
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.weights import verify
from labelmill.operators.ontology import Ontology

Method = Literal["auto", "hdbscan", "kmeans", "hierarchical"]

NOISE, UNKNOWN = -1, -2
MIN_SIZE = 10
MIN_SAMPLES = 64
"""HDBSCAN looks at as many neighbours as the smallest cluster has images, but no more than this."""

SAMPLE, LEAST_SAMPLE = 2**18, 2**12
"""Most and fewest vectors that are held at once to train k-means, or to seek neighbours among."""


def _names_with(card: ModelCard | None) -> ModelCard | None:
    return None if card is None else require("embedding")(card)


class Cluster(DatasetOperator):
    """Groups of images with similar embeddings. Decides nothing: `keep` and `balance` do.

    Vectors that are equal number by number count once, however many images have them; with `hdbscan` in `min_size` too.
    Neither the order of the images nor the number of threads matters.

    **Methods.** `hdbscan` (Campello et al. 2013; exact, in all dimensions) finds how many clusters there are, of any
    shape, and leaves what is in none as noise: -1. A vector that would be noise but has `min_size` copies or more is
    a cluster. Its time grows with n². `kmeans` (FAISS, spherical) and `hierarchical` (Ward) put every image into
    a cluster. `auto` is `hdbscan` for up to `limit` distinct vectors, `kmeans` for more.

    **Columns.** `cluster`: from 0, the largest first, of equal ones that with the smallest key; -1 is noise.
    `distance`: cosine distance to the centre, which is the mean of the cluster's vectors scaled to length 1; null for
    noise. `outlier`: how far the k-th neighbour is, against how far the k-th neighbours of these are (simplified local
    outlier factor, Schubert et al. 2014): about 1 within a group however dense that is, 2 for an image twice as far
    from its neighbours as they are from theirs, 1 if there is no other image. `hdbscan` compares all images; otherwise,
    of more than 16,384 vectors some neighbours are missed (see `neighbours.PROBES`), and of more than 262,144 they are
    sought among a sample, so there what is rarer than one in thousands of images looks like an outlier. `name`, with
    a `model`: the class of `vocabulary` whose vector is nearest to the centre; null for noise. Images without a usable
    embedding fail.

    **Images that arrive later** change nothing for earlier ones. Each joins the cluster of the earlier image nearest to
    it. With `hdbscan` and `auto` that may be none: if the earlier image is noise, or if the new one would be further
    from the cluster's centre than any image in it. Those that join none are clustered among themselves, and their
    clusters numbered on. Distances are to the centre of the earlier images, neighbours are sought among all.

    **Size.** With vectors of 512 numbers, 20,000 take 12 core seconds (`hdbscan`), 100,000 take 16, 400,000 take 75 and
    1,000,000 take 192 (`kmeans`, outliers included): n to the power 1.07. At that rate 10⁸ images take 6 core hours and
    10⁹ 60. Besides what `memory_gb` says there are by count some 150 bytes for each image, 16 for each of its
    neighbours, and the keys: 30 GB for 10⁸, 300 GB for 10⁹, so those should be clustered in parts.
    """

    name = "cluster"
    version = 2

    class Params(OperatorParams):
        """How to group, and what to name groups with.

        Attributes:
            method: `auto`, `hdbscan`, `kmeans` or `hierarchical`.
            min_size: Images of the smallest cluster. Left out, it is 10 for `hdbscan` and `auto`, else 1. With `kmeans`
                and `hierarchical` smaller clusters are dissolved into the nearest others.
            clusters: How many, for `kmeans` and `hierarchical`; fewer where there are fewer different images. Left out,
                it is √(n/2), at most 1,000, for `kmeans`; `hierarchical` looks for the step in the costs of its merges.
            neighbours: k of `outlier`.
            limit: Distinct vectors up to which `auto` takes `hdbscan`.
            memory_gb: For vectors that are held at once. With less, samples are smaller and results coarser; `auto`
                takes `kmeans` where `hdbscan` does not fit.
            seed: Of k-means and of samples.
            embedding: The column that `embed` wrote.
            model: The card that made the embeddings, whose text side names the clusters. In the fingerprint its digest
                stands for it.
            vocabulary: Names, and the prompts that mean them; the pipeline's ontology where a step has none. Without
                `model` it is not looked at.
            templates: Sentences with {} for the prompt.
        """

        method: Method = "auto"
        min_size: int | None = Field(None, ge=1)
        clusters: int | None = Field(None, ge=1)
        neighbours: int = Field(10, ge=1, le=1000)
        limit: int = Field(50_000, ge=0)
        memory_gb: float = Field(4.0, ge=0.5, allow_inf_nan=False)
        seed: int = Field(0, ge=0, lt=2**31)
        embedding: str = "embedding"
        model: Annotated[ModelCard | None, AfterValidator(_names_with)] = tuning(None)
        vocabulary: Ontology | None = None
        templates: tuple[Template, ...] = Field(("a photo of a {}.",), min_length=1)

        @model_validator(mode="after")
        def _check(self) -> Cluster.Params:
            if self.clusters is not None and self.method not in ("kmeans", "hierarchical"):
                raise ValueError(
                    f"clusters needs the method kmeans or hierarchical but method is {self.method}, which finds out "
                    "how many there are"
                )
            if self.min_size == 1 and self.method in ("auto", "hdbscan"):
                raise ValueError(f"min_size must be at least 2 with method {self.method} but is 1")
            return self

        def result_params(self) -> dict[str, Any]:
            """Without `model` there are no names, so what they would be made of is left out."""
            params = super().result_params()
            if self.model is None:
                del params["vocabulary"], params["templates"]
            return params

    params: Params

    def reads(self) -> tuple[str, ...]:
        return (self.params.embedding,)

    def writes(self) -> pa.Schema:
        """`cluster`, `distance`, `outlier`; with a `model` also `name`."""
        fields = [
            pa.field("cluster", pa.int32()),
            pa.field("distance", pa.float32()),
            pa.field("outlier", pa.float32()),
        ]
        return pa.schema([*fields, pa.field("name", pa.string())] if self.params.model else fields)

    def expects(self) -> dict[str, pa.DataType]:
        if self.params.model is None:
            return {}
        return {self.params.embedding: embedding(encoder.dimensions(self.params.model))}

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        for column, found in columns.items():
            check_vectors(column, found)
        super().check(columns)
        if self.params.model is not None:
            encoder.check(self.params.model, text=True)
            if self.params.vocabulary is None or not self.params.vocabulary.classes:
                raise OperatorError("vocabulary must name what clusters may be called but is empty", ("vocabulary",))

    def needs(self) -> Needs:
        card = self.params.model
        return Needs(memory_gb=self.params.memory_gb + (card.memory_gb if card else 0.0))

    def digest(self) -> str:
        card, vocabulary = self.params.model, self.params.vocabulary
        # The first of equally near names is taken, so their order counts.
        return "" if card is None else "\n".join((card.digest(), *(vocabulary.classes if vocabulary else ())))

    def ready(self) -> None:
        if self.params.model is not None:
            verify(self.params.model)

    def load(self) -> None:
        if self.params.model is None or self.params.vocabulary is None:
            return
        texts = class_texts(self.params.vocabulary, self.params.templates)
        self._vocabulary = encoder.class_vectors(encoder.text_encoder(self.params.model), texts)

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        start, column = old.num_rows, self.params.embedding
        vectors = Vectors(old_then_new(column, new, old))
        points, of_row = read_points(vectors, old_then_new("key", new, old))
        usable = of_row[:start] >= 0
        known = np.full(len(points), UNKNOWN)
        known[of_row[:start][usable]] = _clusters(old)[usable]

        labels, settled, around = self._labels(points, known, old)
        middles = centres.means(points, settled, int(labels.max(initial=NOISE)) + 1)
        asked = np.unique(of_row[start:])
        asked = asked[asked >= 0]
        distance, outlier = np.full(len(points), np.nan), np.full(len(points), np.nan)
        distance[asked] = centres.distances(points.subset(asked), labels[asked], middles)
        references = points.sample(self._sample(vectors.dimensions), self.params.seed)
        outlier[asked] = outlier_scores(points, asked, self.params.neighbours, references, around)

        mine = of_row[start:]
        bad = mine < 0
        cluster = labels[mine] if len(points) else mine
        columns = [
            pa.array(cluster.astype(np.int32), mask=bad),
            _floats(distance, mine, bad | (cluster < 0)),
            _floats(outlier, mine, bad),
        ]
        if self.params.model is not None:
            names = pa.array(self._names(middles, old), pa.string())
            columns.append(names.take(pa.array(cluster, mask=bad | (cluster < 0))))
        decisions = [KEPT] * new.num_rows
        for row in np.flatnonzero(bad).tolist():
            decisions[row] = Decision("failed", vectors.problems[start + row])
        return TableResult(pa.table(columns, schema=self.writes()), decisions)

    def _labels(
        self, points: Points, known: NDArray[np.int64], old: pa.Table
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Neighbourhood | None]:
        """The cluster of each point; the same without those that joined an earlier one; and neighbours, if found."""
        labels, fresh = known.copy(), np.flatnonzero(known == UNKNOWN)
        earlier = int(known.max(initial=NOISE)) + 1
        if earlier and len(fresh):
            labels[fresh] = self._join(points, known, fresh, old, earlier)
        rest = fresh[labels[fresh] < 0]
        settled = known.copy()
        if not len(rest):
            return labels, settled, None
        some = points.subset(rest)
        found, around = self._find(some)
        found = centres.number_by_size(found, some.copies)
        labels[rest] = settled[rest] = np.where(found >= 0, found + earlier, NOISE)
        return labels, settled, around if len(some) == len(points) else None

    def _find(self, points: Points) -> tuple[NDArray[np.int64], Neighbourhood | None]:
        """Clusters of new points, in any numbers; and their nearest neighbours, if they were sought."""
        params, dimensions = self.params, points.vectors.dimensions
        most, method = self._sample(dimensions), params.method
        if method == "auto":
            fits = 16 * len(points) * dimensions <= params.memory_gb * 2**30
            method = "hdbscan" if len(points) <= params.limit and fits else "kmeans"
        if method == "hdbscan":
            return self._dense(points)
        min_size = params.min_size or (MIN_SIZE if params.method == "auto" else 1)
        group = centres.k_means_clusters if method == "kmeans" else centres.merged_clusters
        return group(points, params.clusters, min_size, params.seed, most), None

    def _dense(self, points: Points) -> tuple[NDArray[np.int64], Neighbourhood]:
        min_size = self.params.min_size or MIN_SIZE
        min_samples = min(min_size, MIN_SAMPLES)
        everything = np.arange(len(points))
        search = Neighbours(points, everything, exact=True)
        # Twice as many neighbours as it takes prove nearly all of the tree.
        around = search.search(everything, max(2 * min_samples, self.params.neighbours))
        labels = density.density_clusters(search.vectors, around, min_size, min_samples)
        alone = np.flatnonzero((labels < 0) & (points.copies >= min_size))
        labels[alone] = labels.max(initial=NOISE) + 1 + np.arange(len(alone))
        return labels, around

    def _join(
        self, points: Points, known: NDArray[np.int64], fresh: NDArray[np.int64], old: pa.Table, count: int
    ) -> NDArray[np.int64]:
        """The cluster of the earlier image nearest to each new point, or noise."""
        earlier = np.flatnonzero(known != UNKNOWN)
        sample = points.subset(earlier).sample(self._sample(points.vectors.dimensions), self.params.seed)
        nearest = Neighbours(points, earlier[sample]).search(fresh, 1).points[:, 0]
        labels = known[nearest]
        if self.params.method in ("auto", "hdbscan"):
            clusters, reached = _clusters(old), old.column("distance").to_numpy()
            inside = clusters >= 0
            radius = np.zeros(count)
            np.maximum.at(radius, clusters[inside], reached[inside])
            middles = centres.means(points, known, count)
            distance = centres.distances(points.subset(fresh), labels, middles)
            # Written distances are float32, so the furthest image itself must not be too far.
            labels = np.where(distance <= radius[labels] + 1e-6, labels, NOISE)
        return labels

    def _names(self, middles: NDArray[np.float32], old: pa.Table) -> list[str]:
        """Of each cluster; one that was named before keeps its name."""
        assert self.params.vocabulary is not None
        classes = self.params.vocabulary.classes
        names = [classes[best] for best in (middles @ self._vocabulary.T).argmax(axis=1)]
        clusters, first = np.unique(_clusters(old), return_index=True)
        for cluster, name in zip(clusters.tolist(), old.column("name").take(pa.array(first)).to_pylist(), strict=True):
            if cluster >= 0:
                names[cluster] = name
        return names

    def _sample(self, dimensions: int) -> int:
        """Vectors that an eighth of the memory holds as float32."""
        return int(np.clip(self.params.memory_gb * 2**30 / 8 / (4 * dimensions), LEAST_SAMPLE, SAMPLE))


def _clusters(old: pa.Table) -> NDArray[np.int64]:
    """Of earlier images."""
    clusters: NDArray[np.int64] = pc.fill_null(old.column("cluster"), UNKNOWN).to_numpy().astype(np.int64)
    return clusters


def _floats(values: NDArray[np.float64], points: NDArray[np.int64], missing: NDArray[np.bool_]) -> pa.Array:
    found = np.zeros(len(points), dtype=np.float32)
    found[~missing] = values[points[~missing]]
    return pa.array(found, mask=missing)
