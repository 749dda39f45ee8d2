"""The annotations of one image of a COCO file, as detections."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from labelmill.pipelines.sources.base import Refused, valid_text
from labelmill.pipelines.sources.coco_file import CocoFile, Record, named
from labelmill.pipelines.sources.frames import Frame, extent
from labelmill.pipelines.sources.labels import (
    OVERFLOW,
    LabelError,
    clip,
    detection,
    mask_area,
    mask_box,
    numbers,
    polygon_mask,
    rle_mask,
    same_objects,
)
from labelmill.pipelines.sources.metadata import json_value

READ = {"id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "score"}
"""Keys of an annotation that have a place of their own."""

PLACED = {"keypoints", "rotation", "polygon", "segments_info"}
"""Keys whose values are pixels, which are not turned or scaled with the labels."""

MAX_EXTRA = 16 * 1024
"""Longest JSON of what else an annotation says that is carried."""


@dataclass
class Taken:
    """What became of the annotations of an image.

    Attributes:
        labels: Dicts of `operators.columns.schemas.DETECTION`, regions to ignore among them.
        refused: Those that could not be taken.
        notes: What is worth saying of those that were.
    """

    labels: list[dict[str, Any]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_id(number: Any) -> bool:
    """Whether it can be looked up."""
    return isinstance(number, (int, float, str))


def reach_of(annotations: Sequence[Record]) -> tuple[float, float]:
    """The largest x and y of annotations, in the pixels that they were drawn in; what cannot be read does not count."""
    boxes: list[tuple[float, float, float, float]] = []
    for annotation in annotations:
        with contextlib.suppress(LabelError):
            x, y, width, height = numbers(annotation.get("bbox"), 4)
            boxes.append((x, y, x + width, y + height))
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            with contextlib.suppress(LabelError):
                high, wide = numbers(segmentation.get("size"), 2)
                boxes.append((0, 0, wide, high))
        for ring in segmentation if isinstance(segmentation, list) else []:
            with contextlib.suppress(LabelError):
                points = numbers(ring)
                if len(points) >= 6:
                    boxes.append((0, 0, max(points[0::2]), max(points[1::2])))
    return extent(boxes)


def read_labels(annotations: Sequence[Record], content: CocoFile, frame: Frame | None) -> Taken:
    """The annotations of an image as detections; those with ``iscrowd`` as regions to ignore.

    Args:
        annotations: Records of one image.
        content: The file that they are from. Where all of it is crowds, they are taken for objects.
        frame: The pixels that they were drawn in; None where nobody knows, and then masks cannot be read.
    """
    taken = Taken()
    names = []
    for annotation in annotations:
        name = named(annotation)
        try:
            taken.labels.append(_label(annotation, name, content, frame, taken.notes))
            names.append(name)
        except LabelError as error:
            taken.refused.append(Refused(name, str(error)))
    taken.labels = same_objects(taken.labels, names, taken.notes)
    return taken


def _label(annotation: Record, name: str, content: CocoFile, frame: Frame | None, notes: list[str]) -> dict[str, Any]:
    number = annotation.get("category_id")
    if not is_id(number) or number not in content.names:
        raise LabelError(f"has the category id {str(number)[:60]}, which is not listed")
    mask = None
    try:
        mask = _mask(annotation, name, frame, notes)
    except LabelError as error:
        notes.append(f"{name} {error}; its mask is left out")
    box = _box(annotation, name, frame, mask, notes)
    prompt, models = _attributes(annotation, name, notes)
    wide, high = box[2] - box[0], box[3] - box[1]
    return detection(
        box,
        content.names[number],
        _score(annotation, name, notes),
        mask,
        prompt,
        models,
        crowd=True if annotation.get("iscrowd") and not content.all_crowds else None,
        extra=_extra(
            annotation,
            name,
            wide * high if mask is None or frame is None else mask_area(mask, frame.upright),
            frame,
            notes,
        ),
    )


def _box(
    annotation: Record, name: str, frame: Frame | None, mask: str | None, notes: list[str]
) -> tuple[float, float, float, float]:
    """The box, or that of the mask where it has none worth the name."""
    problem = LabelError("has neither a box nor a mask that can be used")
    if annotation.get("bbox"):
        try:
            x, y, width, height = numbers(annotation["bbox"], 4)
            drawn = (x, y, x + width, y + height)
            if frame is None:
                box, outside = clip(drawn, None)
            else:
                if width <= 0 or height <= 0:
                    raise LabelError(f"has a box without area: {width:g} x {height:g}")
                box, outside = clip(frame.box(drawn), frame.upright)
        except LabelError as error:
            problem = error
        else:
            if outside > OVERFLOW:
                notes.append(f"{name} has a box that leaves the image by {outside:g} pixels; it was clipped")
            return box
    if mask is None or frame is None:
        raise problem
    if annotation.get("bbox"):
        notes.append(f"{name} {problem}; that of its mask is taken")
    return mask_box(mask, frame.upright)


def _attributes(annotation: Record, name: str, notes: list[str]) -> tuple[str | None, list[str] | None]:
    """The prompt and the models of an annotation that an export of this project wrote; others may mean else by them."""
    attributes = annotation.get("attributes")
    if not isinstance(attributes, dict):
        return None, None
    prompt, models = attributes.get("prompt"), attributes.get("models")
    if prompt is not None and not isinstance(prompt, str):
        notes.append(f"{name} has the prompt {str(prompt)[:60]}; it must be text and is left out")
        prompt = None
    if models is not None and not (isinstance(models, list) and all(isinstance(model, str) for model in models)):
        notes.append(f"{name} has the models {str(models)[:60]}; they must be a list of names and are left out")
        models = None
    return None if prompt is None else valid_text(prompt), None if models is None else list(map(valid_text, models))


def _mask(annotation: Record, name: str, frame: Frame | None, notes: list[str]) -> str | None:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if frame is None:
        raise LabelError("has a mask, which needs the image's width and height")
    if isinstance(segmentation, dict):
        upright = Frame(frame.upright, frame.upright)
        mine = upright if segmentation.get("size") == [frame.upright[1], frame.upright[0]] else frame
        return mine.mask(rle_mask(segmentation, mine.size))
    if not isinstance(segmentation, list):
        raise LabelError("has a segmentation that is neither polygons nor RLE")
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in segmentation):
        segmentation = [segmentation]  # the only ring, without the list around it
    return polygon_mask(
        segmentation, frame.upright, lambda fault: notes.append(f"{name} {fault}; that ring is left out"), frame.points
    )


def _score(annotation: Record, name: str, notes: list[str]) -> float | None:
    score = annotation.get("score")
    if score is None:
        return None
    if isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
        return float(score)
    notes.append(f"{name} has the score {str(score)[:60]}; it must be 0 to 1")
    return None


def _extra(annotation: Record, name: str, area: float, frame: Frame | None, notes: list[str]) -> str | None:
    """What else it says, as JSON; ``area`` where it is another one than its mask's, or its box's without a mask."""
    found = {key: value for key, value in annotation.items() if key not in READ and value is not None}
    if isinstance(attributes := found.get("attributes"), dict):
        found["attributes"] = {key: value for key, value in attributes.items() if key not in ("prompt", "models")}
    said = found.pop("area", None)
    is_area = isinstance(said, (int, float)) and not isinstance(said, bool) and 0 < said < float("inf")
    still = frame is None or frame.turned == frame.upright  # an area of scaled labels is another one
    if is_area and still and abs(said - area) > 1e-6 * area:  # type: ignore[operator]
        found["area"] = said
    if frame is not None and not frame.is_upright:
        lost = sorted(set(found) & PLACED)
        if lost:
            notes.append(f"{name} has {', '.join(lost)} in other pixels than the upright image's; left out")
        found = {key: value for key, value in found.items() if key not in PLACED}
    found = {key: value for key, value in found.items() if value not in ({}, [], "")}
    if not found:
        return None
    try:
        text = json.dumps(json_value(found), ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not text or len(text) > MAX_EXTRA:
        notes.append(
            f"{name} carries more than can be kept besides its box and mask; {', '.join(sorted(found))} left out"
        )
        return None
    return text
