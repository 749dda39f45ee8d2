"""YOLO label files: one object a line, ``class cx cy w h`` or ``class x1 y1 x2 y2 …``, all relative to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from labelmill.pipelines.sources.labels import LabelError, clip, detection, mask_box, painted_mask

TOLERANCE = 0.01
"""By how much a relative coordinate may leave 0…1 and still be clipped rather than refused."""


@dataclass(frozen=True, slots=True)
class YoloObject:
    """One line.

    Attributes:
        line: Its number in the file, from 1.
        number: Class number.
        box: Relative ``cx, cy, w, h``; None for a polygon.
        polygon: Relative ``x, y, x, y, …``; None for a box.
    """

    line: int
    number: int
    box: tuple[float, ...] | None
    polygon: tuple[float, ...] | None


Lines = list[tuple[int, str]]
"""Numbers of lines from 1, and what is to be said of each."""


def parse_labels(data: bytes, classes: int, keypoint_values: int = 0) -> tuple[list[YoloObject], Lines, Lines]:
    """The objects of a label file; the lines that say one of them again; and those that cannot be used, and why.

    Args:
        data: The file.
        classes: How many classes there are.
        keypoint_values: Numbers after the box in each line of a pose dataset; they are not read.
    """
    objects: list[YoloObject] = []
    repeated: Lines = []
    wrong: Lines = []
    seen: dict[tuple[float, ...], int] = {}
    for line, text in enumerate(_text(data).splitlines(), 1):
        if not text.strip("\0 \t\r\n"):
            continue
        try:
            values = _values(text)
            item = _object(line, values, classes, keypoint_values)
            other = seen.setdefault(values, line)
            if other != line:
                repeated.append((line, f"repeats line {other}"))
            else:
                objects.append(item)
        except LabelError as error:
            wrong.append((line, str(error)))
    return objects, repeated, wrong


def _text(data: bytes) -> str:
    """The file as text: UTF-8, or UTF-16 where its first bytes say so, as a Windows shell writes it."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def to_detection(item: YoloObject, name: str, size: tuple[int, int]) -> tuple[dict[str, Any], float]:
    """The object in pixels of an image of this width and height, and by how many pixels its box left it.

    A polygon's box is its extent and its mask what Ultralytics paints of it, the border included.

    Raises:
        LabelError: Nothing of it is inside the image, or a polygon is a single point.
    """
    width, height = size
    if item.box is not None:
        cx, cy, w, h = item.box
        sides = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        box, outside = clip(sides, size)
        return detection(box, name), outside
    assert item.polygon is not None
    xs = [min(max(x, 0.0), 1.0) * width for x in item.polygon[::2]]
    ys = [min(max(y, 0.0), 1.0) * height for y in item.polygon[1::2]]
    box = (min(xs), min(ys), max(xs), max(ys))
    if box[0] == box[2] and box[1] == box[3]:
        raise LabelError("has a polygon that is a single point")
    mask = painted_mask(list(zip(xs, ys, strict=True)), size)
    return detection(box if box[0] < box[2] and box[1] < box[3] else mask_box(mask, size), name, mask=mask), 0.0


def _values(text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split()))
    except ValueError:
        raise LabelError(f"must have numbers only but is {text.strip()[:60]!r}") from None
    if not all(map(math.isfinite, values)):
        raise LabelError(f"must have finite numbers but is {text.strip()[:60]!r}")
    return values


def _object(line: int, values: tuple[float, ...], classes: int, keypoint_values: int) -> YoloObject:
    number, places = values[0], values[1:]
    if number != int(number) or not 0 <= number < classes:
        raise LabelError(f"must name a class from 0 to {classes - 1} but names {number:g}")
    if keypoint_values and len(places) == 4 + keypoint_values:
        places = places[:4]
    if len(places) != 4 and (len(places) < 6 or len(places) % 2):
        raise LabelError(
            f"has {len(values)} values; it must have 5 (class, box) or 7, 9, … (class, three points or more)"
        )
    if not all(-TOLERANCE <= place <= 1 + TOLERANCE for place in places):
        raise LabelError(f"must have coordinates relative to the image, 0 to 1, but has {max(places, key=abs):g}")
    if len(places) > 4:
        return YoloObject(line, int(number), None, places)
    if places[2] <= 0 or places[3] <= 0:
        raise LabelError(f"has a box without area: {places[2]:g} x {places[3]:g}")
    return YoloObject(line, int(number), places, None)
