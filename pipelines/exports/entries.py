"""Labels and words as plain JSON values, for formats that leave the shape to whoever writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labelmill.pipelines.exports.dataset import ExportImage
from labelmill.pipelines.exports.labels import Label, object_id
from labelmill.pipelines.exports.texts import Text

DIGITS = 2
"""Decimals of a coordinate in pixels."""


def object_entry(image: ExportImage, label: Label, classes: Sequence[str]) -> dict[str, Any]:
    """One object with COCO's keys, and its ``category`` by name.

    ``id`` is that of the COCO export. ``bbox`` is x, y, width, height in pixels of the upright image. ``category_id``
    counts from 1. ``area`` is in pixels, the mask's where there is one. ``segmentation`` is compressed RLE, and left
    out without a mask; so are ``score``, ``prompt`` and ``models`` where not known. ``iscrowd`` is 1 for a region to
    ignore, ``extra`` what else the source said of it; else they are left out.
    """
    x1, y1, x2, y2 = (round(value, DIGITS) for value in label.box)
    width, height = round(x2 - x1, DIGITS), round(y2 - y1, DIGITS)
    entry: dict[str, Any] = {
        "id": object_id(image, label),
        "bbox": [x1, y1, width, height],
        "category": classes[label.class_id],
        "category_id": label.class_id + 1,
        "area": round(width * height, 2 * DIGITS) if label.mask is None else label.mask.area,
    }
    if label.mask is not None:
        entry["segmentation"] = {"size": [label.mask.height, label.mask.width], "counts": label.mask.counts}
    if label.score is not None:
        entry["score"] = round(label.score, 4)
    if label.prompt is not None:
        entry["prompt"] = label.prompt
    if label.models:
        entry["models"] = list(label.models)
    if label.crowd:
        entry["iscrowd"] = 1
    if label.extra:
        entry["extra"] = label.extra
    return entry


def word_entry(word: Text) -> dict[str, Any]:
    """One word: ``text``, ``quad`` (x, y of four corners in pixels, clockwise from the text's top left), ``score``."""
    entry: dict[str, Any] = {
        "text": word.text,
        "quad": [round(value, DIGITS) for corner in word.corners for value in corner],
    }
    if word.score is not None:
        entry["score"] = round(word.score, 4)
    return entry
