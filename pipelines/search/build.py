"""How an index of embeddings is built: flat, or IVF-PQ with as many lists to look into as it needs.

Vectors are read shard by shard. A build holds a training sample (40 vectors a list: 336 MB of float32 at 512 dimensions
from 17 million vectors on), a block of `BLOCK` vectors, and the index: at 512 dimensions 2 kB a vector when flat, 136
bytes otherwise, so 1.4 GB for ten million.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.columns.vectors import Vectors
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.steps import Input

LISTS = 4096
"""Lists of an IVF-PQ index, at most; it has as many as the square root of its vectors up to there."""

SAMPLE_PER_LIST = 40
SAMPLE_AT_LEAST = 10_000
"""Vectors to train with: what faiss asks for, for a list and for the 256 centroids of a part."""

BLOCK = 16_384

TARGET = 0.99
MEASURED_WITH = 100
"""Vectors whose true neighbours are looked for to choose how many lists to look into."""
NEIGHBOURS = 10
DEPTH = 100
"""True neighbours that are known of each, so that copies of the last of ten are known too."""
AT_LEAST = 400
"""Candidates at least."""

Found = NDArray[np.int64]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Facts:
    """What is known about an index.

    Attributes:
        kind: `flat` is exact.
        vectors: How many it holds.
        recall: Share of the ten nearest neighbours that are among the candidates, as measured; None when exact.
        lists: Lists to look into; 0 when flat.
        checksum: XXH3-128 of the file, in hexadecimal.
    """

    kind: Literal["flat", "ivf-pq"]
    vectors: int
    recall: float | None = None
    lists: int = 0
    checksum: str = ""


class Rows:
    """The vectors of a column, shard by shard."""

    def __init__(self, layout: Layout, column: Input, shards: dict[int, int]) -> None:
        self._layout, self._column, self._shards = layout, column, shards
        self.dimensions: int = column.type.list_size
        self.images = sum(shards.values())

    @cached_property
    def counts(self) -> dict[int, int]:
        """Number of usable vectors, by shard. Reads them all."""
        return {shard: len(self.of(shard)[0]) for shard in sorted(self._shards)}

    def of(self, shard: int) -> tuple[Found, Matrix]:
        """image_ids, ascending, and L2-normalised vectors of a shard's usable rows."""
        assert self._column.step is not None
        table = self._layout.table(self._column.step, shard, ["image_id", self._column.column])
        vectors = Vectors(table.column(self._column.column))
        rows = np.flatnonzero(vectors.usable)
        return table.column("image_id").to_numpy().astype(np.int64)[rows], vectors.take(rows)

    def blocks(self) -> Iterator[tuple[Found, Matrix]]:
        """All shards, as `of`, about `BLOCK` rows at a time."""
        waiting: list[tuple[Found, Matrix]] = []
        for shard in sorted(self._shards):
            waiting.append(self.of(shard))
            if sum(len(ids) for ids, _ in waiting) >= BLOCK:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)

    def sample(self, size: int) -> tuple[Found, Matrix]:
        """About `size` rows, drawn from all shards; always the same ones."""
        total = sum(self.counts.values())
        drawn = np.sort(np.random.default_rng(0).choice(total, min(size, total), replace=False, shuffle=False))
        parts, first = [], 0
        for shard, count in self.counts.items():
            low, high = np.searchsorted(drawn, [first, first + count])
            if low < high:
                ids, vectors = self.of(shard)
                chosen = drawn[low:high] - first
                parts.append((ids[chosen], vectors[chosen]))
            first += count
        return _joined(parts)


def _joined(parts: list[tuple[Found, Matrix]]) -> tuple[Found, Matrix]:
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def build(rows: Rows, flat_up_to: int) -> tuple[Any, Facts]:
    """A FAISS index whose ids are image_ids, and what is known about it.

    Args:
        rows: What it is to hold.
        flat_up_to: Above so many vectors it is IVF-PQ.
    """
    import faiss

    if rows.images <= flat_up_to or sum(rows.counts.values()) <= flat_up_to:
        index: Any = faiss.IndexIDMap(faiss.IndexFlatIP(rows.dimensions))
        for ids, vectors in rows.blocks():
            index.add_with_ids(vectors, ids)
        return index, Facts("flat", index.ntotal)
    lists = min(LISTS, int(np.sqrt(sum(rows.counts.values()))))
    ids, sample = rows.sample(max(SAMPLE_AT_LEAST, SAMPLE_PER_LIST * lists))
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(rows.dimensions), rows.dimensions, lists, _parts(rows.dimensions), 8,
        faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    index.cp.spherical = True
    index.pq.cp.niter, index.pq.cp.max_points_per_centroid = 10, SAMPLE_PER_LIST
    for training in (index.cp, index.pq.cp):
        training.min_points_per_centroid = 1  # fewer are no mistake: the run may have no more
    index.train(sample)
    chosen = np.linspace(0, len(ids) - 1, min(MEASURED_WITH, len(ids))).astype(np.int64)
    truth = _Truth(ids[chosen], sample[chosen])
    del ids, sample
    for ids, vectors in rows.blocks():
        index.add_with_ids(vectors, ids)
        truth.look_at(ids, vectors)
    return index, Facts("ivf-pq", index.ntotal, *_measure(index, truth))


def _parts(dimensions: int) -> int:
    """Into how many parts, of four dimensions or more, vectors are cut."""
    return max(parts for parts in range(1, max(1, dimensions // 4) + 1) if dimensions % parts == 0)


def _measure(index: Any, truth: _Truth) -> tuple[float, int]:
    """The recall of the fewest lists, by doubling, that reach `TARGET`; and how many these are."""
    lists = 1
    while True:
        index.nprobe = lists
        recall = truth.recall(index.search(truth.queries, AT_LEAST)[1])
        if recall >= TARGET or lists == index.nlist:
            return round(recall, 4), lists
        lists = min(2 * lists, index.nlist)


class _Truth:
    """The true neighbours of some vectors of an index, gathered while it is filled.

    Args:
        own: Their image_ids.
        queries: float32 (n, dimensions), L2-normalised.
    """

    def __init__(self, own: Found, queries: Matrix) -> None:
        self.queries = queries
        self._own = own
        self._ids = np.full((len(own), DEPTH), -1)
        self._cosines = np.full((len(own), DEPTH), -np.inf, dtype=np.float32)

    def look_at(self, ids: Found, vectors: Matrix) -> None:
        """Some more of the index's vectors, and their image_ids."""
        fresh = self.queries @ vectors.T
        fresh[self._own[:, None] == ids] = -np.inf
        cosines = np.concatenate([self._cosines, fresh], axis=1)
        everyone = np.concatenate([self._ids, np.broadcast_to(ids, fresh.shape)], axis=1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :DEPTH]
        self._cosines = np.take_along_axis(cosines, best, axis=1)
        self._ids = np.take_along_axis(everyone, best, axis=1)

    def recall(self, found: Found) -> float:
        """Share of the nearest `NEIGHBOURS` among candidates.

        A candidate counts where its cosine reaches that of the last true neighbour: of several copies any will do. A
        vector with more copies than are known here says nothing.
        """
        enough = self._cosines[:, NEIGHBOURS - 1, None] - 1e-6
        telling = self._cosines[:, -1:] < enough
        right = np.where(self._cosines >= enough, self._ids, -2)
        hits = (found[:, :, None] == right[:, None, :]).any(axis=2).sum(axis=1)
        shares = np.minimum(hits, NEIGHBOURS)[telling[:, 0]] / NEIGHBOURS
        return float(shares.mean()) if len(shares) else 1.0
