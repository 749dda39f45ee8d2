"""Detections against truth: COCO's average precision, and precision and recall of labels as they are.

Both sides are lists of dicts with COCO's keys: ``image_id``, ``category_id`` (from 1), ``bbox`` (x, y, width, height in
pixels), optionally ``segmentation`` (RLE), and ``score`` on the found side.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from operators.boxes import iou

Box = Mapping[str, Any]


@dataclass(frozen=True)
class AveragePrecision:
    """By class, in the order of the categories; NaN for a class of which there is no object.

    Attributes:
        ap50: At an IoU of 0.5.
        ap: The mean over IoUs of 0.50, 0.55 … 0.95.
    """

    ap50: np.ndarray
    ap: np.ndarray


def average_precision(
    truth: Sequence[Box],
    found: Sequence[Box],
    images: Iterable[int],
    classes: Sequence[str],
    by: Literal["bbox", "segm"] = "bbox",
) -> AveragePrecision:
    """COCO's average precision (Lin et al. 2014), by pycocotools, at most 100 detections an image.

    Args:
        truth: What is there.
        found: What was found.
        images: Ids of all images that were looked at.
        classes: Names of the categories 1, 2, ….
        by: Overlap of boxes or of masks.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {**each, "id": number, "area": each.get("area", each["bbox"][2] * each["bbox"][3]), "iscrowd": 0}
        for number, each in enumerate(truth, 1)
    ]
    if not found:
        there = {each["category_id"] for each in truth}
        nothing = np.array([0.0 if number in there else np.nan for number in range(1, len(classes) + 1)])
        return AveragePrecision(nothing, nothing.copy())
    shapes = {each["image_id"]: each.get("segmentation") for each in (*truth, *found) if each.get("segmentation")}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, **_size(shapes.get(image))} for image in images],
            "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
            "annotations": annotations,
        }
        coco.createIndex()
        scores = COCOeval(coco, coco.loadRes([dict(each) for each in found]), by)
        scores.params.areaRng, scores.params.areaRngLbl = scores.params.areaRng[:1], scores.params.areaRngLbl[:1]
        scores.evaluate()
        scores.accumulate()
    precision = scores.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; -1 where there is no object
    precision = np.where(precision < 0, np.nan, precision)
    return AveragePrecision(precision[0].mean(axis=0), precision.mean(axis=(0, 1)))


def _size(shape: Any) -> dict[str, int]:
    return {} if shape is None else dict(zip(("height", "width"), shape["size"], strict=True))


@dataclass(frozen=True)
class Pair:
    """Positions in the two lists of something found and of what it is, and the IoU of their boxes."""

    found: int
    truth: int
    iou: float


def match(truth: Sequence[Box], found: Sequence[Box], least: float = 0.5) -> list[Pair]:
    """Give each found box, best score first, the free true box of its image and class that it overlaps most.

    Args:
        truth: What is there.
        found: What was found; a score of None counts as 1.
        least: The IoU that they must have at least.
    """
    free: dict[tuple[int, int], list[int]] = {}
    for number, each in enumerate(truth):
        free.setdefault((each["image_id"], each["category_id"]), []).append(number)
    scores = [1.0 if each.get("score") is None else float(each["score"]) for each in found]
    pairs = []
    for number in sorted(range(len(found)), key=lambda index: (-scores[index], index)):
        candidates = free.get((found[number]["image_id"], found[number]["category_id"]), [])
        if not candidates:
            continue
        boxes = np.array([corners(truth[candidate]["bbox"]) for candidate in candidates])
        overlaps = iou(np.array([corners(found[number]["bbox"])]), boxes)[0]
        best = int(overlaps.argmax())
        if overlaps[best] >= least:
            pairs.append(Pair(number, candidates.pop(best), float(overlaps[best])))
    return pairs


def corners(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    """xyxy of COCO's x, y, width, height."""
    x, y, width, height = bbox
    return x, y, x + width, y + height


def bbox(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """COCO's x, y, width, height of xyxy."""
    return [x1, y1, x2 - x1, y2 - y1]
