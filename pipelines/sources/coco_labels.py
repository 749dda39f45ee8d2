"""The annotations of one image of a COCO file, as detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.sources.base import valid_text
from pipelines.sources.coco_file import CocoFile, Record, named
from pipelines.sources.labels import OVERFLOW, LabelError, clip, detection, mask_box, numbers, polygon_mask, rle_mask


def is_id(number: Any) -> bool:
    """Whether it can be looked up."""
    return isinstance(number, (int, float, str))


def read_labels(
    annotations: Sequence[Record], content: CocoFile, size: tuple[int, int] | None, problems: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The annotations of an image as detections, and its crowd regions as metadata.

    Args:
        annotations: Records of one image.
        content: The file that they are from.
        size: The image's width and height; None where unknown, and then masks cannot be read.
        problems: Told of everything that is wrong, by the annotation's id.
    """
    labels, crowd = [], []
    for annotation in annotations:
        name = named(annotation)
        try:
            label = _label(annotation, name, content, size, problems)
        except LabelError as error:
            problems.append(f"{name} {error}")
            continue
        if annotation.get("iscrowd"):
            box = [label[side] for side in ("x1", "y1", "x2", "y2")]
            crowd.append({"annotation": annotation.get("id"), "class": label["class"], "box": box})
        else:
            labels.append(label)
    return labels, crowd


def _label(
    annotation: Record, name: str, content: CocoFile, size: tuple[int, int] | None, problems: list[str]
) -> dict[str, Any]:
    number = annotation.get("category_id")
    if not is_id(number) or number not in content.names:
        raise LabelError(f"has the category id {str(number)[:60]}, which is not listed")
    mask = None
    try:
        mask = _mask(annotation, size)
    except LabelError as error:
        problems.append(f"{name} {error}; its mask is left out")
    if annotation.get("bbox"):
        x, y, width, height = numbers(annotation["bbox"], 4)
        box, outside = clip((x, y, x + width, y + height), size)
        if outside > OVERFLOW:
            problems.append(f"{name} has a box that leaves the image by {outside:g} pixels; it was clipped")
    elif mask is not None and size is not None:
        box = mask_box(mask, size)
    else:
        raise LabelError("has neither a box nor a mask that can be used")
    prompt, models = _attributes(annotation, name, problems)
    return detection(box, content.names[number], _score(annotation, name, problems), mask, prompt, models)


def _attributes(annotation: Record, name: str, problems: list[str]) -> tuple[str | None, list[str] | None]:
    """The prompt and the models of an annotation that an export of this project wrote; others may mean else by them."""
    attributes = annotation.get("attributes")
    if not isinstance(attributes, dict):
        return None, None
    prompt, models = attributes.get("prompt"), attributes.get("models")
    if prompt is not None and not isinstance(prompt, str):
        problems.append(f"{name} has the prompt {str(prompt)[:60]}; it must be text and is left out")
        prompt = None
    if models is not None and not (isinstance(models, list) and all(isinstance(model, str) for model in models)):
        problems.append(f"{name} has the models {str(models)[:60]}; they must be a list of names and are left out")
        models = None
    return None if prompt is None else valid_text(prompt), None if models is None else list(map(valid_text, models))


def _mask(annotation: Record, size: tuple[int, int] | None) -> str | None:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if size is None:
        raise LabelError("has a mask, which needs the image's width and height")
    if isinstance(segmentation, dict):
        return rle_mask(segmentation, size)
    if isinstance(segmentation, list):
        return polygon_mask(segmentation, size)
    raise LabelError("has a segmentation that is neither polygons nor RLE")


def _score(annotation: Record, name: str, problems: list[str]) -> float | None:
    score = annotation.get("score")
    if score is None:
        return None
    if isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
        return float(score)
    problems.append(f"{name} has the score {str(score)[:60]}; it must be 0 to 1")
    return None
