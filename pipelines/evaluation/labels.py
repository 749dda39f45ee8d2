"""Labels and masks of a finished run against truth, together and class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.measures.detections import AveragePrecision, average_precision, compare, is_crowd
from labelmill.pipelines.evaluation.truth import DECIMALS, Truth
from labelmill.pipelines.exports.columns import is_raw
from labelmill.pipelines.run_folder.finished_run import FinishedRun

Figures = dict[str, Any]
Label = dict[str, Any]


def judged_classes(truth: Truth, run: FinishedRun) -> dict[str, int]:
    """The number of each class of the truth that the run was asked for."""
    ontology = run.pipeline.settings.ontology
    asked = None if ontology is None else set(ontology.classes)
    return {name: number for number, name in enumerate(truth.classes, 1) if asked is None or name in asked}


def judged_objects(truth: Truth, run: FinishedRun, keys: Iterable[str]) -> list[Label]:
    """The objects of those classes in these images, regions to ignore among them, in COCO's keys."""
    images, numbers = {truth.images[key] for key in keys}, set(judged_classes(truth, run).values())
    return [each for each in truth.objects if each["image_id"] in images and each["category_id"] in numbers]


def as_label(detection: Mapping[str, Any], image: int, number: int) -> Label:
    """A detection in COCO's keys; its box with the decimals that it had before it was stored."""
    x1, y1, x2, y2 = (as_written(detection[side]) for side in SIDES)
    box = [x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)]
    return {"image_id": image, "category_id": number, "bbox": box, "score": detection["score"]}


def as_written(value: float) -> float:
    """The shortest decimal that is stored as this float32: what a file said that was read into one.

    A model's own value moves by less than float32 can tell, and no two values change places.
    """
    return float(str(np.float32(value)))


def label_figures(truth: Truth, run: FinishedRun) -> Figures | None:
    """The run's labels of the classes that the truth knows: as its exports have them, or if it has none, raw ones.

    Returns:
        Counts, precision and recall at an IoU of 0.5, and COCO's average precisions of these labels, for all classes
        and under ``classes`` for each; ``ignored``: labels that lie in regions to ignore, which no other figure counts;
        and if labels have masks, the same of them under ``masks``, unless the truth has some objects without
        (``objects_without_mask``); ``column``: where they are from, and ``raw``: whether no step has decided which of
        them are labels. None for a run without labels.
    """
    column = run.labels_column()
    if not column.type.equals(DETECTIONS):
        return None
    numbers = {name: number for number, name in enumerate(truth.classes, 1)}
    labels = run.labels(truth.images)
    if column.step is None and not labels:
        return None
    images = {truth.images[key] for key in labels}
    there = judged_objects(truth, run, labels)
    found, unknown = [], Counter[str]()
    for key, detections in labels.items():
        for detection in detections:
            if detection.get("crowd"):  # says that nobody counted
                continue
            if detection["class"] not in numbers:
                unknown[detection["class"]] += 1
                continue
            label = as_label(detection, truth.images[key], numbers[detection["class"]])
            found.append({**label, "mask": detection["mask"]})
    compared = compare(there, found)
    averages = precision_averages(there, found, images, truth.classes, "bbox")
    right = Counter(there[pair.truth]["category_id"] for pair in compared.pairs)
    counted = [each for place, each in enumerate(found) if place not in compared.ignored]
    figures: Figures = {
        "images": len(images),
        **shares(compared.objects, compared.labels, len(compared.pairs)),
        "ignored": len(compared.ignored),
        **_means(averages),
        "classes": _by_class(judged_classes(truth, run), there, counted, right, averages),
        "classes_not_in_truth": dict(sorted(unknown.items())),
        "column": column.name(run.layout.steps),
        "raw": column.step is not None and is_raw(run.layout.steps[column.step], run.layout.steps),
    }
    masked = [each for each in found if each["mask"]]
    if masked:
        figures["masks"] = _mask_figures(truth, run, there, masked, labels)
    return figures


def _mask_figures(
    truth: Truth, run: FinishedRun, there: list[Label], found: list[Label], keys: Collection[str]
) -> Figures:
    """Masks against the truth's."""
    bare = sum(not each.get("segmentation") and not is_crowd(each) for each in there)
    if bare:
        return {"labels": len(found), "objects_without_mask": bare}
    sizes = _sizes(truth, run, keys)
    masked = [
        {**each, "segmentation": {"size": sizes[each["image_id"]], "counts": each["mask"].encode()}}
        for each in found
        if each["image_id"] in sizes
    ]
    there = [each if each.get("segmentation") else {**each, "segmentation": _region(each, sizes)} for each in there]
    overlaps = [_mask_iou(masked[pair.found], there[pair.truth]) for pair in compare(there, masked).pairs]
    averages = precision_averages(there, masked, [truth.images[key] for key in keys], truth.classes, "segm")
    return {
        "labels": len(masked),
        "mean_iou": float(np.mean(overlaps)) if overlaps else None,
        **_means(averages),
        "classes": {
            name: {key: _one(getattr(averages, key)[number - 1]) for key in ("ap50", "ap")}
            for name, number in judged_classes(truth, run).items()
            if averages is not None and any(each["category_id"] == number for each in (*there, *masked))
        },
    }


def _sizes(truth: Truth, run: FinishedRun, keys: Iterable[str]) -> dict[int, list[int]]:
    """Height and width of images, by their numbers."""
    sizes = {}
    for key in keys:
        number, size = truth.images[key], run.size(key)
        if size is not None:
            sizes[number] = [size[1], size[0]]
        elif number in truth.sizes:
            sizes[number] = truth.sizes[number]
    return sizes


def _region(crowd: Label, sizes: Mapping[int, list[int]]) -> dict[str, Any]:
    """The box of a region to ignore, as a mask."""
    from pycocotools import mask

    x, y, width, height = crowd["bbox"]
    corners = [x, y, x, y + height, x + width, y + height, x + width, y]
    region: dict[str, Any] = mask.merge(mask.frPyObjects([corners], *sizes[crowd["image_id"]]))
    return region


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
    if all(map(is_crowd, there)):
        return None
    scored = [{**each, "score": 1.0 if each["score"] is None else as_written(each["score"])} for each in found]
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
    objects = Counter(each["category_id"] for each in there if not is_crowd(each))
    labels = Counter(each["category_id"] for each in found)
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
