"""Histograms of scores, fine enough to say what a threshold would keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.keep import Keep
from labelmill.operators.read import WORD
from labelmill.operators.select import Select
from labelmill.pipelines.report.histogram import Histogram
from labelmill.pipelines.report.limits import CLASSES, SCORES
from labelmill.pipelines.report.run_reader import Figures, RunReader, ShardView
from labelmill.pipelines.steps import ColumnError, Input, Step, resolve

BINS = 100
"""Bins of scores of objects, 0.01 wide, from 0 to 1."""

OBJECTS = ((DETECTIONS, "score", "class", "boxes"), (pa.list_(WORD), "confidence", None, "words"))
"""Columns of objects: their type, the field with the score, the field with the class, what the objects are."""


class ImageScores:
    """Columns of one figure an image: quality scores, probabilities, distances."""

    def __init__(self, run: RunReader) -> None:
        self._run = run
        self._columns = run.columns(lambda _, field: pa.types.is_floating(field.type))[:SCORES]
        self._histograms = [Histogram() for _ in self._columns]

    def reads(self) -> Sequence[Input]:
        return self._columns

    def see(self, shard: ShardView) -> None:
        for column, histogram in zip(self._columns, self._histograms, strict=True):
            values = pc.drop_null(shard.column(column)).cast(pa.float64())
            histogram.add(values.to_numpy())

    def finish(self) -> list[Figures]:
        """Of each column with any figure: its name, the histogram, and the threshold that the pipeline has for it."""
        thresholds = dict(_kept_from(self._run.steps))
        return [
            {"name": self._run.name(column), "of": "images", "count": histogram.count, **histogram.finish(),
             "threshold": thresholds.get((column.step, column.column))}
            for column, histogram in zip(self._columns, self._histograms, strict=True) if histogram.count
        ]  # fmt: skip


class ObjectScores:
    """Scores of boxes and of words, by class: how many objects have which, and how many images as their best."""

    def __init__(self, run: RunReader, column: Input, score: str, group: str | None, noun: str) -> None:
        self._run, self._column, self._score, self._group, self._noun = run, column, score, group, noun
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._best: dict[str, NDArray[np.int64]] = {}
        self._all_best = np.zeros(BINS, dtype=np.int64)
        self._images = 0

    @classmethod
    def all_of(cls, run: RunReader) -> list[ObjectScores]:
        """One for each column of objects that a step made itself, rather than chose or completed."""
        found = []
        for kind, score, group, noun in OBJECTS:
            for column in run.columns(lambda step, field, kind=kind: field.type.equals(kind) and step.is_image):  # type: ignore[misc]
                step = run.steps[column.step or 0]
                if not any(source.type.equals(kind) for source in step.inputs.values()):
                    found.append(cls(run, column, score, group, noun))
        return found

    def reads(self) -> Sequence[Input]:
        return (self._column,)

    def see(self, shard: ShardView) -> None:
        lists = shard.column(self._column).combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.chunk(0) if lists.num_chunks else pa.array([], self._column.type)
        self._images += len(lists) - lists.null_count
        objects, rows = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
        scores = pc.struct_field(objects, self._score).to_numpy(zero_copy_only=False).astype(np.float64)
        codes, names = np.zeros(len(scores), dtype=np.int64), [""]
        if self._group is not None:
            codes, names = coded(pc.struct_field(objects, self._group))
        known = np.isfinite(scores)
        rows, scores, codes = rows[known], scores[known], codes[known]
        bins = np.clip(np.floor(np.round(scores * BINS, 4)).astype(np.int64), 0, BINS - 1)
        self._all_best += _best_bins(rows, np.zeros_like(codes), 1, bins)[0]
        counts = np.bincount(codes * BINS + bins, minlength=len(names) * BINS).reshape(-1, BINS)
        best = _best_bins(rows, codes, len(names), bins)
        for code in np.flatnonzero(counts.any(axis=1)).tolist():
            name = names[code]
            self._counts[name] = self._counts.get(name, 0) + counts[code]
            self._best[name] = self._best.get(name, 0) + best[code]

    def finish(self) -> Figures | None:
        """The histogram of all objects, and of each of the most frequent classes; None where there are no scores.

        ``best`` counts images by their best object: summed from a threshold on, the images with at least one left.
        """
        if not self._counts:
            return None
        ranked = sorted(self._counts, key=lambda name: (-int(self._counts[name].sum()), name))[:CLASSES]
        everything = sum(self._counts.values())
        assert not isinstance(everything, int)
        return {
            "name": f"{self._run.name(self._column)} · {self._score}",
            "of": self._noun,
            "count": int(everything.sum()),
            "images": self._images,
            "start": 0.0,
            "width": 1 / BINS,
            "counts": everything.tolist(),
            "best": self._all_best.tolist(),
            "classes": [
                {"name": name, "counts": self._counts[name].tolist(), "best": self._best[name].tolist()}
                for name in sorted(ranked)
            ] if self._group is not None else [],
            "threshold": self._selected_from(),
        }  # fmt: skip

    def _selected_from(self) -> float | None:
        """The score from which `select` keeps the boxes of this column."""
        for step in self._run.steps:
            for source in step.inputs.values():
                if isinstance(step.operator, Select) and (source.step, source.column) == (
                    self._column.step, self._column.column,
                ):  # fmt: skip
                    score = step.operator.params.score
                    return score.get("default") if isinstance(score, dict) else float(score)
        return None


def coded(names: pa.Array) -> tuple[NDArray[np.int64], list[str]]:
    """Names as numbers, and which number is which name; null is the empty name."""
    encoded = pc.dictionary_encode(pc.fill_null(names, ""))
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _best_bins(rows: NDArray[Any], codes: NDArray[np.int64], groups: int, bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each group how many images have their best object in which bin: (groups, BINS)."""
    images = int(rows.max(initial=-1)) + 1
    best = np.full((groups, images), -1, dtype=np.int64)
    np.maximum.at(best, (codes, rows), bins)
    group, image = np.nonzero(best >= 0)
    return np.bincount(group * BINS + best[group, image], minlength=groups * BINS).reshape(groups, BINS)


def _kept_from(steps: Sequence[Step]) -> Iterator[tuple[tuple[int | None, str], float]]:
    """The constants that `keep` compares columns with."""
    for step in steps:
        if not isinstance(step.operator, Keep):
            continue
        for part in step.operator.expression.parts:
            if not part.compares or part.values[0].constant == part.values[1].constant:
                continue
            constant, other = sorted(part.values, key=lambda value: not value.constant)
            try:
                source = resolve(other.text, steps[: step.position])
                yield (source.step, source.column), float(constant.text)
            except (ColumnError, ValueError):
                continue  # an expression over columns, or a constant that is no plain number
