"""Labels and masks of a finished run against truth, together and class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from operators.columns.schemas import DETECTIONS, SIDES
from operators.measures.detections import AveragePrecision, average_precision, bbox, match
from pipelines.evaluation.truth import Truth
from pipelines.exports.columns import labels_column
from pipelines.run_folder.finished_run import FinishedRun

Figures = dict[str, Any]
Label = dict[str, Any]


def judged_classes(truth: Truth, run: FinishedRun) -> dict[str, int]:
    """The number of each class of the truth that the run was asked for."""
    ontology = run.pipeline.settings.ontology
    asked = None if ontology is None else set(ontology.classes)
    return {name: number for number, name in enumerate(truth.classes, 1) if asked is None or name in asked}


def judged_objects(truth: Truth, run: FinishedRun, keys: Iterable[str]) -> list[Label]:
    """The objects of those classes in these images, in COCO's keys."""
    images, numbers = {truth.images[key] for key in keys}, set(judged_classes(truth, run).values())
    return [each for each in truth.objects if each["image_id"] in images and each["category_id"] in numbers]


def as_label(detection: Mapping[str, Any], image: int, number: int) -> Label:
    """A detection in COCO's keys."""
    box = bbox(*(detection[side] for side in SIDES))
    return {"image_id": image, "category_id": number, "bbox": box, "score": detection["score"]}


def label_figures(truth: Truth, run: FinishedRun) -> Figures | None:
    """The run's labels, as its exports have them, of the classes that the truth knows.

    Returns:
        Counts, precision and recall at an IoU of 0.5, and COCO's average precisions of these labels, for all classes
        and under ``classes`` for each; and if labels have masks, the same of them under ``masks``. None for a run
        without labels.
    """
    column = labels_column(run.layout.steps, run.pipeline.labels)
    if column.step is None or not column.type.equals(DETECTIONS):
        return None
    numbers = {name: number for number, name in enumerate(truth.classes, 1)}
    labels = {key: found for key, found in run.values(column).items() if key in truth.images}
    images = {truth.images[key] for key in labels}
    there = judged_objects(truth, run, labels)
    found, unknown = [], Counter[str]()
    for key, detections in labels.items():
        for detection in detections:
            if detection["class"] not in numbers:
                unknown[detection["class"]] += 1
                continue
            label = as_label(detection, truth.images[key], numbers[detection["class"]])
            found.append({**label, "mask": detection["mask"]})
    pairs = match(there, found)
    averages = precision_averages(there, found, images, truth.classes, "bbox")
    right = Counter(there[pair.truth]["category_id"] for pair in pairs)
    figures: Figures = {
        "images": len(images),
        **shares(len(there), len(found), len(pairs)),
        **_means(averages),
        "classes": _by_class(judged_classes(truth, run), there, found, right, averages),
        "classes_not_in_truth": dict(sorted(unknown.items())),
    }
    masked = [
        {**each, "segmentation": {"size": truth.sizes[each["image_id"]], "counts": each["mask"].encode()}}
        for each in found
        if each["mask"]
    ]
    if masked and all(each["segmentation"] for each in there):
        overlaps = [_mask_iou(masked[pair.found], there[pair.truth]) for pair in match(there, masked)]
        averages = precision_averages(there, masked, images, truth.classes, "segm")
        figures["masks"] = {
            "labels": len(masked),
            "mean_iou": float(np.mean(overlaps)) if overlaps else None,
            **_means(averages),
            "classes": {
                name: {key: _one(getattr(averages, key)[number - 1]) for key in ("ap50", "ap")}
                for name, number in judged_classes(truth, run).items()
                if averages is not None and any(each["category_id"] == number for each in (*there, *masked))
            },
        }
    return figures


def shares(objects: int, labels: int, right: int) -> Figures:
    """Counts, precision, recall and F1; null where there is nothing to divide by."""
    return {
        "objects": objects,
        "labels": labels,
        "precision": right / labels if labels else None,
        "recall": right / objects if objects else None,
        "f1": 2 * right / (labels + objects) if labels + objects else None,
    }


def precision_averages(
    there: list[Label], found: list[Label], images: Iterable[int], classes: tuple[str, ...], by: Literal["bbox", "segm"]
) -> AveragePrecision | None:
    """COCO's average precision, where a label without a score counts as sure; None where there is no object."""
    if not there:
        return None
    scored = [{**each, "score": 1.0 if each["score"] is None else each["score"]} for each in found]
    return average_precision(there, scored, images, classes, by)


_AVERAGES = {"ap50": "ap50", "ap": "ap", "ap75": "ap75", "ap_small": "small", "ap_medium": "medium",
             "ap_large": "large", "average_recall": "recall"}  # fmt: skip
"""Names of figures, and the attributes of `AveragePrecision` that they are the means of."""


def _means(averages: AveragePrecision | None) -> Figures:
    return {name: None if averages is None else _mean(getattr(averages, key)) for name, key in _AVERAGES.items()}


def _mean(by_class: np.ndarray) -> float | None:
    known = by_class[np.isfinite(by_class)]
    return float(known.mean()) if len(known) else None


def _one(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _by_class(
    numbers: Mapping[str, int],
    there: list[Label],
    found: list[Label],
    right: Counter[int],
    averages: AveragePrecision | None,
) -> dict[str, Figures]:
    """Every class of which there is an object or a label."""
    objects, labels = (Counter(each["category_id"] for each in some) for some in (there, found))
    return {
        name: {
            **shares(objects[number], labels[number], right[number]),
            **{key: None if averages is None else _one(getattr(averages, key)[number - 1]) for key in ("ap50", "ap")},
        }
        for name, number in numbers.items()
        if objects[number] or labels[number]
    }


def _mask_iou(one: Label, other: Label) -> float:
    from pycocotools import mask

    return float(mask.iou([one["segmentation"]], [other["segmentation"]], [0])[0, 0])
