"""Objects in the cells of tables: a list of mappings, or a mapping of lists, with boxes and classes.

``bbox`` is COCO's x, y, width, height in pixels, as the packages of Hugging Face mean it. What the exports
`huggingface` and `webdataset` write comes back whole: masks, scores, prompts, models, regions to ignore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from labelmill.operators.columns.schemas import DETECTION, SIDES
from labelmill.pipelines.sources.base import Refused, Shape, valid_text
from labelmill.pipelines.sources.frames import Frame, extent, frame_of
from labelmill.pipelines.sources.labels import (
    OVERFLOW,
    LabelError,
    clip,
    detection,
    mask_box,
    numbers,
    polygon_mask,
    rle_mask,
    same_objects,
)

CLASS_KEYS = ("category", "categories", "label", "labels", "class", "classes", "class_name", "name", "category_id")
"""Where an object's class may stand, the likeliest first."""

OBJECTS = ("objects", "annotations", "labels", "detections")
"""What the column of objects is called, the likeliest first."""

PLAIN = {"id", "area", "iscrowd", "is_crowd", "crowd", "score", "prompt", "models", "mask", "segmentation", "extra"}


def holds_objects(kind: pa.DataType) -> bool:
    """Whether cells of this type are objects that `read_objects` reads: with boxes and classes."""
    names = _fields(kind)
    return ("bbox" in names and any(key in names for key in CLASS_KEYS)) or _are_detections(names)


def objects_column(schema: pa.Schema) -> str | None:
    """The column that holds objects; None where there is none."""
    found = [field.name for field in schema if holds_objects(field.type)]
    return min(found, key=lambda name: (OBJECTS.index(name) if name in OBJECTS else len(OBJECTS), name), default=None)


def unread_boxes(schema: pa.Schema, taken: str | None) -> list[str]:
    """Columns that look like boxes and are not read."""
    words = ("bbox", "box", "boxes", "bboxes", "x1", "xmin", "polygon", "polygons", "segmentation", "points")
    return [
        field.name
        for field in schema
        if field.name != taken
        and (
            set(words) & {name.lower() for name in _fields(field.type)}
            or (_is_list(field.type) and field.name in words)
        )
    ]


def read_objects(
    cell: Any,
    names: Sequence[str] | None,
    shape: Shape | None,
    said: tuple[int, int] | None,
    rescale: bool = False,
) -> tuple[list[dict[str, Any]] | None, list[Refused], list[str]]:
    """The objects of an image: labels (None: nobody looked, or none could be taken), refused ones, and notes.

    Args:
        cell: A list of mappings, or a mapping of lists; None where nobody looked.
        names: Class names by number.
        shape: Of the image; None where it is not known.
        said: Width and height that the row says.
        rescale: See `pipelines.sources.frames.frame_of`.
    """
    items = _rows_of(cell)
    if items is None:
        return None, [], []
    places = [f"object {number}" for number in range(1, len(items) + 1)]
    notes: list[str] = []
    frame = None
    if items and shape is not None:
        try:
            frame, note = frame_of(said, shape, extent([box for box in map(_drawn, items) if box is not None]), rescale)
        except LabelError as error:
            return None, [Refused(place, f"is refused: its image's labels {error}") for place in places], []
        notes += [note] if note else []
    elif said is not None:
        frame = Frame(said, said)
    labels, kept, refused = [], [], []
    for place, item in zip(places, items, strict=True):
        try:
            labels.append(_label(item, place, names, frame, notes))
            kept.append(place)
        except LabelError as error:
            refused.append(Refused(place, str(error)))
    labels = same_objects(labels, kept, notes)
    return (labels if labels or not refused else None), refused, notes


def _label(
    item: Mapping[str, Any], place: str, names: Sequence[str] | None, frame: Frame | None, notes: list[str]
) -> dict[str, Any]:
    name = _class(item, names)
    mask = None
    try:
        mask = _mask(item, frame)
    except LabelError as error:
        notes.append(f"{place} {error}; its mask is left out")
    drawn = _drawn(item)
    if drawn is None and mask is not None and frame is not None:
        box = mask_box(mask, frame.upright)
    else:
        if drawn is None:
            numbers(item.get("bbox"), 4)  # says what is wrong with it
            raise LabelError("has no box")
        if drawn[2] <= drawn[0] or drawn[3] <= drawn[1]:
            raise LabelError(f"has a box without area: {drawn[2] - drawn[0]:g} x {drawn[3] - drawn[1]:g}")
        box, outside = clip(drawn if frame is None else frame.box(drawn), None if frame is None else frame.upright)
        if outside > OVERFLOW:
            notes.append(f"{place} has a box that leaves the image by {outside:g} pixels; clipped")
    score, prompt, models, extra = (item.get(key) for key in ("score", "prompt", "models", "extra"))
    crowd = any(item.get(key) for key in ("iscrowd", "is_crowd", "crowd"))
    return detection(
        box,
        name,
        float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None,
        mask,
        valid_text(prompt) if isinstance(prompt, str) else None,
        [valid_text(model) for model in models if isinstance(model, str)] or None if isinstance(models, list) else None,
        crowd=True if crowd else None,
        extra=_extra(extra),
    )


def _extra(value: Any) -> str | None:
    if isinstance(value, str):
        return valid_text(value) or None
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, dict) and value else None


def _mask(item: Mapping[str, Any], frame: Frame | None) -> str | None:
    shape = item.get("segmentation") or item.get("mask")
    if not shape:
        return None
    if frame is None:
        raise LabelError("has a mask, which needs the image's width and height")
    if isinstance(shape, list):
        rings = shape if isinstance(shape[0], list) else [shape]
        return polygon_mask(rings, frame.upright, place=frame.points)
    if isinstance(shape, (str, dict)):
        return frame.mask(rle_mask(shape if isinstance(shape, dict) else {"counts": shape}, frame.size))
    raise LabelError("has a mask that is neither polygons nor RLE")


def _drawn(item: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """``x1, y1, x2, y2`` as they stand; None without such."""
    try:
        if all(item.get(side) is not None for side in SIDES):
            x1, y1, x2, y2 = numbers([item[side] for side in SIDES], 4)
            return x1, y1, x2, y2
        x, y, width, height = numbers(item.get("bbox"), 4)
    except LabelError:
        return None
    return x, y, x + width, y + height


def _class(item: Mapping[str, Any], names: Sequence[str] | None) -> str:
    value = next((item[key] for key in CLASS_KEYS if item.get(key) is not None), None)
    if isinstance(value, str) and value.strip():
        return valid_text(value.strip())
    if isinstance(value, bool) or not isinstance(value, int) or (names is not None and not 0 <= value < len(names)):
        raise LabelError(f"has the category {value}, which has no name")
    return names[value] if names is not None else str(value)


def _rows_of(cell: Any) -> list[Mapping[str, Any]] | None:
    """Objects as one mapping each; None where there are no labels."""
    if cell is None or isinstance(cell, list):
        return None if cell is None else [item if isinstance(item, dict) else {} for item in cell]
    if not isinstance(cell, dict):
        return None
    boxes = cell.get("bbox")
    if boxes is None:
        return None
    columns = {key: values for key, values in cell.items() if isinstance(values, list)}
    return [
        {key: values[index] if index < len(values) else None for key, values in columns.items()}
        for index in range(max(map(len, columns.values()), default=0))
    ]


def _fields(kind: pa.DataType) -> list[str]:
    """Names of the fields of a struct, or of a list of structs."""
    kind = kind.value_type if _is_list(kind) else kind
    return [field.name for field in kind] if pa.types.is_struct(kind) else []


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _are_detections(names: Sequence[str]) -> bool:
    return {*SIDES, "class"} <= set(names) and set(names) <= {field.name for field in DETECTION}
