"""The labels that a run gives out: classes, sizes of boxes, and which images to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.schemas import SIDES
from labelmill.pipelines.exports.columns import labels_column
from labelmill.pipelines.report.limits import CLASSES, OVERLAYS_EMPTY, OVERLAYS_EVEN, OVERLAYS_WORST
from labelmill.pipelines.report.picking import Lowest, draw
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.report.scores import coded
from labelmill.pipelines.steps import Input

SMALL, LARGE = 32.0, 96.0
"""Sides in pixels, as square roots of areas, below which COCO calls an object small, and from which on large."""

AREAS = ("small", "medium", "large")

SIZE_STEPS = 2
"""Bins of a size histogram in which the side doubles."""


class Labels:
    """Counts the labels of the images that the run kept; picks images to show.

    Args:
        run: The run.
        mistakes: By image_id what is wrong or missing, where there is truth; the image with most of it is the worst.
            Without truth it is the one with the lowest score of a label.
    """

    def __init__(self, run: RunReader, mistakes: Mapping[int, Sized] | None = None) -> None:
        self.column = labels_column(run.steps, run.pipeline.labels)
        self._mistakes = mistakes
        self._boxes: Counter[str] = Counter()
        self._images: Counter[str] = Counter()
        self._sizes: dict[str, Counter[int]] = {}
        self._areas: dict[str, Counter[str]] = {}
        self._per_image: Counter[int] = Counter()
        self._worst, self._even = Lowest(OVERLAYS_WORST), Lowest(OVERLAYS_EVEN)
        self._empty = Lowest(OVERLAYS_EMPTY)

    def reads(self) -> Sequence[Input]:
        return (self.column,)

    def see(self, shard: ShardView) -> None:
        column = shard.column(self.column)
        looked_at = shard.kept & pc.is_valid(column).to_numpy()
        rows = np.flatnonzero(looked_at)
        lists = pa.chunked_array(column.chunks, column.type).take(pa.array(rows)).combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.chunk(0) if lists.num_chunks else pa.array([], column.type)
        ids = shard.ids[rows]
        counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        objects, parents = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
        self._per_image.update(counts.tolist())
        self._count(objects, parents)
        self._pick(ids, counts, objects, parents)

    def _count(self, objects: pa.StructArray, parents: NDArray[Any]) -> None:
        codes, names = coded(pc.struct_field(objects, "class"))
        x1, y1, x2, y2 = (pc.struct_field(objects, side).to_numpy(zero_copy_only=False) for side in SIDES)
        with np.errstate(invalid="ignore"):
            sides = np.sqrt(np.clip(x2 - x1, 0, None).astype(np.float64) * np.clip(y2 - y1, 0, None))
        boxes = np.bincount(codes, minlength=len(names))
        images = np.bincount(np.unique(np.stack([codes, parents]), axis=1)[0], minlength=len(names))
        for code, name in enumerate(names):
            self._boxes[name] += int(boxes[code])
            self._images[name] += int(images[code])
        usable = np.isfinite(sides) & (sides > 0)
        codes, sides = codes[usable], sides[usable]
        bins = np.floor(np.log2(sides) * SIZE_STEPS).astype(np.int64)
        areas = np.digitize(sides, [SMALL, LARGE])
        for (code, place), count in _counted(codes, bins):
            self._sizes.setdefault(names[code], Counter())[place] += count
        for (code, area), count in _counted(codes, areas):
            self._areas.setdefault(names[code], Counter())[AREAS[area]] += count

    def _pick(
        self, ids: NDArray[np.int64], counts: NDArray[Any], objects: pa.StructArray, parents: NDArray[Any]
    ) -> None:
        drawn = draw(ids)
        full = counts > 0
        self._empty.add(ids[~full], drawn[~full])
        self._even.add(ids, drawn)
        if self._mistakes is not None:
            wrong = np.array([len(self._mistakes.get(image_id, ())) for image_id in ids.tolist()], dtype=np.float64)
            self._worst.add(ids[wrong > 0], -wrong[wrong > 0])
            return
        lowest = np.full(len(ids), np.inf)
        scores = pc.struct_field(objects, "score").to_numpy(zero_copy_only=False).astype(np.float64)
        np.minimum.at(lowest, parents, np.where(np.isnan(scores), np.inf, scores))
        scored = np.isfinite(lowest)
        self._worst.add(ids[scored], lowest[scored])

    @property
    def picked(self) -> dict[str, list[int]]:
        """image_ids to show: ``worst`` first, drawn ``even``-ly, and ``empty`` of labels."""
        return {"worst": self._worst.ids.tolist(), "even": self._even.ids.tolist(), "empty": self._empty.ids.tolist()}

    def finish(self) -> Figures:
        """Counts by class, the most frequent first; sizes of boxes by class; labels an image."""
        ranked = sorted(self._boxes, key=lambda name: (-self._boxes[name], name))
        bins = sorted({place for sizes in self._sizes.values() for place in sizes})
        span = range(bins[0], bins[-1] + 1) if bins else range(0)
        return {
            "boxes": self._boxes.total(),
            "images": self._per_image.total(),
            "without": self._per_image[0],
            "classes": [
                {"name": name, "boxes": self._boxes[name], "images": self._images[name],
                 **{size: self._areas.get(name, Counter())[size] for size in AREAS},
                 "sizes": [self._sizes.get(name, Counter())[place] for place in span]}
                for name in ranked[:CLASSES]
            ],
            "more_classes": max(0, len(ranked) - CLASSES),
            "edges": [round(2 ** (place / SIZE_STEPS), 1) for place in [*span, span.stop]] if bins else [],
            "per_image": sorted(self._per_image.items()),
            "ranked_by_mistakes": self._mistakes is not None,
        }  # fmt: skip


def _counted(codes: NDArray[np.int64], places: NDArray[np.int64]) -> Iterator[tuple[tuple[int, int], int]]:
    """Each pair of a code and a place that occurs, and how often."""
    pairs, counts = np.unique(np.stack([codes, places]), axis=1, return_counts=True)
    for code, place, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        yield (code, place), count
