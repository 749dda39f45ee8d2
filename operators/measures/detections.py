"""Detections against truth: COCO's average precision, and precision and recall of labels as they are.

Both sides are lists of dicts with COCO's keys: ``image_id``, ``category_id`` (from 1), ``bbox`` (x, y, width, height in
pixels), optionally ``segmentation`` (RLE); ``score`` on the found side, ``area`` and ``iscrowd`` on the true one. A
true region with ``iscrowd`` is one to ignore: what is found in it is neither right nor wrong.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labelmill.operators.detections.boxes import iou
from labelmill.operators.detections.sightings import shares_inside

Box = Mapping[str, Any]


@dataclass(frozen=True)
class AveragePrecision:
    """By class, in the order of the categories; NaN for a class of which there is no object (of that size).

    Attributes:
        ap50: At an IoU of 0.5.
        ap: The mean over IoUs of 0.50, 0.55 … 0.95.
        ap75: At an IoU of 0.75.
        small: As `ap`, of objects below 32² pixels.
        medium: As `ap`, of objects from there to 96².
        large: As `ap`, of larger objects.
        recall: The largest recall, as the mean over the same IoUs: COCO's AR.
    """

    ap50: np.ndarray
    ap: np.ndarray
    ap75: np.ndarray
    small: np.ndarray
    medium: np.ndarray
    large: np.ndarray
    recall: np.ndarray


def average_precision(
    truth: Sequence[Box],
    found: Sequence[Box],
    images: Iterable[int],
    classes: Sequence[str],
    by: Literal["bbox", "segm"] = "bbox",
) -> AveragePrecision:
    """COCO's average precision (Lin et al. 2014), by pycocotools, at most 100 detections an image.

    Of equal scores those come first whose image has the smaller id, then those that stand first in `found`.

    Args:
        truth: What is there. Its size is its ``area``, else that of its ``segmentation``, else of its box.
        found: What was found. Its size is that of its mask where masks are compared, else of its box.
        images: Ids of all images that were looked at.
        classes: Names of the categories 1, 2, ….
        by: Overlap of boxes or of masks.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {**each, "id": number, "area": _area(each), "iscrowd": int(is_crowd(each))}
        for number, each in enumerate(truth, 1)
    ]
    if not found:
        known = np.arange(1, len(classes) + 1)
        objects = [each for each in annotations if not each["iscrowd"]]
        there = [[each["category_id"] for each in objects if low <= each["area"] <= high] for low, high in _SIZES]
        every, small, medium, large = (np.where(np.isin(known, some), 0.0, np.nan) for some in there)
        return AveragePrecision(every, every, every, small, medium, large, every)
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
        # With a box, pycocotools takes the box's area for a mask's.
        without = "bbox" if by == "segm" else "segmentation"
        results = [{key: value for key, value in each.items() if key != without} for each in found]
        scores = COCOeval(coco, coco.loadRes(results), by)
        scores.evaluate()
        scores.accumulate()
    precision = scores.eval["precision"][..., -1]  # IoU, recall, class, size; -1 where there is no object
    precision = np.where(precision < 0, np.nan, precision)
    recall = scores.eval["recall"][:, :, 0, -1]
    ap50, ap75 = (precision[place, :, :, 0].mean(axis=0) for place in (0, 5))
    ap, small, medium, large = np.moveaxis(precision.mean(axis=(0, 1)), 1, 0)
    return AveragePrecision(ap50, ap, ap75, small, medium, large, np.where(recall < 0, np.nan, recall).mean(axis=0))


_SIZES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))
"""Areas in square pixels, as pycocotools has them: all, small, medium, large."""


def _area(each: Box) -> float:
    if each.get("area") is not None:
        return float(each["area"])
    if each.get("segmentation"):
        from pycocotools import mask

        return float(mask.area(each["segmentation"]))
    return float(each["bbox"][2] * each["bbox"][3])


def _size(shape: Any) -> dict[str, int]:
    return {} if shape is None else dict(zip(("height", "width"), shape["size"], strict=True))


def is_crowd(each: Box) -> bool:
    """Whether it is a region to ignore."""
    return bool(each.get("iscrowd"))


@dataclass(frozen=True)
class Pair:
    """Positions in the two lists of something found and of what it is, and the IoU of their boxes."""

    found: int
    truth: int
    iou: float


@dataclass(frozen=True)
class Comparison:
    """What was found, held against what is there.

    Attributes:
        objects: How many objects are there, regions to ignore not among them.
        labels: How many were found and count: all but the ignored.
        pairs: Those that are right.
        ignored: Positions of those found that are no object but lie in a region to ignore.
    """

    objects: int
    labels: int
    pairs: list[Pair]
    ignored: frozenset[int]


def compare(truth: Sequence[Box], found: Sequence[Box], least: float = 0.5) -> Comparison:
    """Match what was found with the objects; of what is left, ignore what lies in a region of its class to ignore.

    As COCOeval does it: the share of the found box that lies in the region's box takes the place of the IoU.

    Args:
        truth: What is there.
        found: What was found; a score of None counts as 1.
        least: The IoU, or that share, that they must have at least.
    """
    pairs = match(truth, found, least)
    crowds: dict[tuple[int, int], list[Box]] = {}
    for each in truth:
        if is_crowd(each):
            crowds.setdefault((each["image_id"], each["category_id"]), []).append(each)
    ignored: set[int] = set()
    if crowds:
        right = {pair.found for pair in pairs}
        for number, each in enumerate(found):
            regions = crowds.get((each["image_id"], each["category_id"]))
            if regions and number not in right:
                boxes = np.array([corners(region["bbox"]) for region in regions])
                if shares_inside(np.array([corners(each["bbox"])]), boxes).max() >= least:
                    ignored.add(number)
    objects = len(truth) - sum(map(is_crowd, truth))
    return Comparison(objects, len(found) - len(ignored), pairs, frozenset(ignored))


def match(truth: Sequence[Box], found: Sequence[Box], least: float = 0.5) -> list[Pair]:
    """Give each found box, best score first, the free true box of its image and class that it overlaps most.

    Args:
        truth: What is there. Regions to ignore are nobody's.
        found: What was found; a score of None counts as 1.
        least: The IoU that they must have at least.
    """
    free: dict[tuple[int, int], list[int]] = {}
    for number, each in enumerate(truth):
        if not is_crowd(each):
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
