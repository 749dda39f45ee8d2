"""Holds a finished run against truth: labels, masks, words, gaze, captions, duplicates, bad images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from operators.measures.detections import average_precision, bbox, match
from operators.measures.gaze import angular_error
from operators.measures.words import Read, word_scores
from operators.schemas import DETECTIONS, SIDES
from pipelines.errors import UserError
from pipelines.export_run import labels_column
from pipelines.inspect_run import reopen
from pipelines.layout import column_of
from pipelines.outcomes import outcomes
from pipelines.shards import read_shard
from pipelines.steps import Input
from pipelines.truth import Truth, read_truth

Figures = dict[str, Any]


class _Run:
    """What a run says about the images it kept, by key."""

    def __init__(self, folder: str) -> None:
        self.pipeline, self.layout, self.shards = reopen(folder)
        self.keys: dict[int, list[str]] = {}
        self.outcome: dict[str, str] = {}
        try:
            for outcome in outcomes(self.layout, self.shards):
                keys = read_shard(self.layout.store, outcome.shard, ["key"]).column(0).to_pylist()
                self.keys[outcome.shard] = keys
                self.outcome.update(zip(keys, outcome.final, strict=True))
        except FileNotFoundError as error:
            raise UserError(f"the run {folder} is not finished; run its pipeline again to go on") from error

    def values(self, column: Input) -> dict[str, Any]:
        """A column's values of the images that were kept and for which there is one."""
        found: dict[str, Any] = {}
        for shard, keys in self.keys.items():
            values = column_of(self.layout, column, shard).to_pylist()
            pairs = zip(keys, values, strict=True)
            found.update((key, value) for key, value in pairs if value is not None and self.outcome[key] == "kept")
        return found

    def last(self, name: str, fields: Iterable[str] = ()) -> Input | None:
        """The last step's column of that name whose values are lists of structs with these fields, if any is asked."""
        for step in reversed(self.layout.steps):
            for column in step.operator.writes():
                if column.name == name and set(fields) <= _fields(column.type):
                    return Input(step.position, name, column.type)
        return None


def _fields(kind: pa.DataType) -> set[str]:
    inner = kind.value_type if pa.types.is_list(kind) else kind
    return {inner.field(index).name for index in range(inner.num_fields)}


def evaluate_run(folder: str, truth_path: Path) -> Figures:
    """How right a finished run is, as plain values.

    Labels, masks, words, gaze and captions are judged on the images that the run kept and the truth knows. A part of
    which the run or the truth says nothing is left out.

    Args:
        folder: The run.
        truth_path: See `pipelines.truth.read_truth`.

    Raises:
        UserError: The run is not finished, the truth cannot be read, or the two have no image in common.
    """
    truth, run = read_truth(truth_path), _Run(folder)
    if not run.outcome.keys() & (truth.images.keys() | {row["key"] for rows in truth.tables.values() for row in rows}):
        raise UserError(
            f"the run {folder} and the truth {truth_path} must have keys in common, but the run has such as "
            f"{next(iter(run.outcome), 'none')!r} and the truth such as {next(iter(truth.images), 'none')!r}"
        )
    parts = {
        "images": _bad_images(truth, run),
        "duplicates": _duplicates(truth, run),
        "labels": _labels(truth, run),
        "words": _words(truth, run),
        "gaze": _gaze(truth, run),
        "captions": _captions(truth, run),
    }
    return {"run": folder, "truth": str(truth_path), **{name: part for name, part in parts.items() if part is not None}}


def _bad_images(truth: Truth, run: _Run) -> Figures | None:
    """What became of images with a known defect, and of those without."""
    if "defects" not in truth.tables:
        return None
    defects = {row["key"]: row["defect"] for row in truth.tables["defects"]}
    by_defect: dict[str, Counter[str]] = defaultdict(Counter)
    good: Counter[str] = Counter()
    for key, outcome in run.outcome.items():
        (by_defect[defects[key]] if key in defects else good)[outcome] += 1
    return {
        "by_defect": {name: dict(sorted(counts.items())) for name, counts in sorted(by_defect.items())},
        "good": good.total(),
        "good_lost": good["dropped"] + good["failed"],
    }


def _duplicates(truth: Truth, run: _Run) -> Figures | None:
    """Pairs of copies that the run found, among the images that `deduplicate` saw."""
    column = run.last("group")
    if column is None or column.step is None or "duplicates" not in truth.tables:
        return None
    groups: dict[str, int] = {}
    seen: set[str] = set()
    for shard, keys in run.keys.items():
        table = run.layout.table(column.step, shard, ["group", "decision"])
        for key, group, decision in zip(keys, *(each.to_pylist() for each in table.columns), strict=True):
            if decision in ("kept", "duplicate"):
                seen.add(key)
                if group is not None:
                    groups[key] = group
    rows = {row["key"]: row for row in truth.tables["duplicates"] if row["key"] in seen}
    kinds: dict[str, list[bool]] = defaultdict(list)
    for key, row in rows.items():
        if row["of"] in rows:
            kinds[row["kind"]].append(key in groups and groups.get(row["of"]) == groups[key])
    found = _pairs(groups)
    right = sum(one in rows and other in rows and rows[one]["group"] == rows[other]["group"] for one, other in found)
    return {
        "pairs_found": len(found),
        "pairs_right": right,
        "recall_by_kind": {kind: {"found": sum(hits), "of": len(hits)} for kind, hits in sorted(kinds.items())},
    }


def _pairs(groups: dict[str, int]) -> list[tuple[str, str]]:
    members: dict[int, list[str]] = defaultdict(list)
    for key, group in sorted(groups.items()):
        members[group].append(key)
    return [pair for keys in members.values() for pair in combinations(keys, 2)]


def _labels(truth: Truth, run: _Run) -> Figures | None:
    """The run's labels, as its exports have them, of the classes that the truth knows."""
    column = labels_column(run.layout.steps, run.pipeline.labels)
    if column.step is None or not column.type.equals(DETECTIONS):
        return None
    numbers = {name: number for number, name in enumerate(truth.classes, 1)}
    asked = _asked(run)
    labels = {key: found for key, found in run.values(column).items() if key in truth.images}
    images = {truth.images[key]: key for key in labels}
    there = [each for each in truth.objects if each["image_id"] in images and
             (asked is None or truth.classes[each["category_id"] - 1] in asked)]  # fmt: skip
    found, unknown = [], Counter[str]()
    for key, detections in labels.items():
        for detection in detections:
            if detection["class"] not in numbers:
                unknown[detection["class"]] += 1
                continue
            each = {"image_id": truth.images[key], "category_id": numbers[detection["class"]],
                    "bbox": bbox(*(detection[side] for side in SIDES)), "score": detection["score"],
                    "mask": detection["mask"]}  # fmt: skip
            found.append(each)
    pairs = match(there, found)
    figures: Figures = {
        "images": len(images),
        "objects": len(there),
        "labels": len(found),
        "precision": len(pairs) / len(found) if found else None,
        "recall": len(pairs) / len(there) if there else None,
        **_mean_precision(there, found, images, truth.classes, "bbox"),
        "classes_not_in_truth": dict(sorted(unknown.items())),
    }
    masked = [
        {**each, "segmentation": {"size": truth.sizes[each["image_id"]], "counts": each["mask"].encode()}}
        for each in found
        if each["mask"]
    ]
    if masked and all(each["segmentation"] for each in there):
        overlaps = [_mask_iou(masked[pair.found], there[pair.truth]) for pair in match(there, masked)]
        figures["masks"] = {
            "labels": len(masked),
            "mean_iou": float(np.mean(overlaps)) if overlaps else None,
            **_mean_precision(there, masked, images, truth.classes, "segm"),
        }
    return figures


def _asked(run: _Run) -> set[str] | None:
    ontology = run.pipeline.settings.ontology
    return set(ontology.classes) if ontology is not None else None


def _mean_precision(
    there: list[dict[str, Any]], found: list[dict[str, Any]], images: Iterable[int], classes: tuple[str, ...], by: Any
) -> dict[str, float | None]:
    if not there:
        return {"ap50": None, "ap": None}
    scored = [{**each, "score": 1.0 if each["score"] is None else each["score"]} for each in found]
    figures = average_precision(there, scored, images, classes, by)
    return {"ap50": float(np.nanmean(figures.ap50)), "ap": float(np.nanmean(figures.ap))}


def _mask_iou(one: dict[str, Any], other: dict[str, Any]) -> float:
    from pycocotools import mask

    return float(mask.iou([one["segmentation"]], [other["segmentation"]], [0])[0, 0])


def _words(truth: Truth, run: _Run) -> Figures | None:
    column = run.last("words", ("text", *SIDES))
    if column is None or "words" not in truth.tables:
        return None
    read = {key: words for key, words in run.values(column).items() if key in truth.images}
    found = [Read(truth.images[key], word["text"], _box(word)) for key, words in read.items() for word in words]
    there = [
        Read(truth.images[row["key"]], row["text"], _box(row)) for row in truth.tables["words"] if row["key"] in read
    ]
    scores = word_scores(there, found)
    return {
        "images": len(read),
        "words": scores.there,
        "recall": _finite(scores.recall),
        "precision": _finite(scores.precision),
        "character_error_rate": _finite(scores.character_error_rate),
    }


def _gaze(truth: Truth, run: _Run) -> Figures | None:
    column = run.last("gaze", ("yaw", "pitch", *SIDES))
    if column is None or "gaze" not in truth.tables:
        return None
    seen = {key: faces for key, faces in run.values(column).items() if key in truth.images}
    rows = [row for row in truth.tables["gaze"] if row["key"] in seen]
    there = [_face(truth.images[row["key"]], row) for row in rows]
    faces = [(key, face) for key, found in seen.items() for face in found]
    pairs = match(there, [_face(truth.images[key], face) for key, face in faces])
    errors = angular_error(
        [[faces[pair.found][1]["yaw"], faces[pair.found][1]["pitch"]] for pair in pairs],
        [[rows[pair.truth]["yaw"], rows[pair.truth]["pitch"]] for pair in pairs],
    )
    mean = float(errors.mean()) if len(errors) else None
    return {"faces": len(there), "found": len(faces), "matched": len(pairs), "mean_angular_error": mean}


def _captions(truth: Truth, run: _Run) -> Figures | None:
    column = run.last("answer")
    if column is None or "captions" not in truth.tables:
        return None
    told = run.values(column)
    rows = [row for row in truth.tables["captions"] if row["key"] in told]
    right = sum(told[row["key"]] == row["caption"] for row in rows)
    return {"images": len(rows), "right": right, "share": right / len(rows) if rows else None}


def _face(image: int, row: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": bbox(*_box(row))}


def _box(row: dict[str, Any]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(row[side]) for side in SIDES)
    return x1, y1, x2, y2


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
