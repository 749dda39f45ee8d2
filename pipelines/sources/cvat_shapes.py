"""Shapes of CVAT's XML (*CVAT for images 1.1*) as boxes and masks: for its source, and for what a review gives back."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np

from labelmill.pipelines.sources.frames import Box, Frame
from labelmill.pipelines.sources.labels import LabelError, numbers, polygon_mask, rle_mask

SHAPES = ("box", "polygon", "mask")
OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton")
"""Shapes that are neither boxes nor masks; an ellipse is as good as one."""

SIDES = ("xtl", "ytl", "xbr", "ybr")
PLACE = ("left", "top", "width", "height")

ELLIPSE = 72
"""Corners of the polygon that stands for an ellipse."""


def geometry(shape: ElementTree.Element, frame: Frame) -> tuple[Box | None, str | None, str | None]:
    """The box of a shape, or its mask as RLE counts, in the upright image; and a note where it was more than that.

    Raises:
        LabelError: It is nothing of the kind.
    """
    if shape.tag == "mask":
        return None, frame.mask(_mask(shape, frame.size)), None
    if shape.tag == "polygon":
        try:
            points = [float(value) for pair in (shape.get("points") or "").split(";") for value in pair.split(",")]
        except ValueError as error:
            raise LabelError(f"must have points as x,y;x,y but has {shape.get('points')!r:.60}") from error
        return None, polygon_mask([points], frame.upright, place=frame.points), None
    if shape.tag == "ellipse":
        cx, cy, rx, ry = figures(shape, ("cx", "cy", "rx", "ry"))
        angles = np.linspace(0, 2 * math.pi, ELLIPSE, endpoint=False)
        around = np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)
        around = _rotated(around, (cx, cy), turn(shape))
        return None, polygon_mask([around.ravel().tolist()], frame.upright, place=frame.points), None
    x1, y1, x2, y2 = figures(shape, SIDES)
    if x2 <= x1 or y2 <= y1:
        raise LabelError(f"has a box without area: {x2 - x1:g} x {y2 - y1:g}")
    if turn(shape) == 0:
        return frame.box((x1, y1, x2, y2)), None, None
    note = f"is turned by {turn(shape):g} degrees; the upright box around it was taken"
    corners = _rotated(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]), ((x1 + x2) / 2, (y1 + y2) / 2), turn(shape))
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return frame.box((left, top, right, bottom)), None, note


def reach(shape: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """``x1, y1, x2, y2`` around a shape as it stands; None of one that cannot be read."""
    try:
        if shape.tag == "box":
            x1, y1, x2, y2 = figures(shape, SIDES)
            return x1, y1, x2, y2
        if shape.tag == "mask":
            left, top, width, height = figures(shape, PLACE)
            return left, top, left + width, top + height
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
        return 0, 0, max(float(x) for x, _ in pairs), max(float(y) for _, y in pairs)
    except (LabelError, ValueError):
        return None


def _rotated(points: np.ndarray, centre: tuple[float, float], degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray((points - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre)


def turn(shape: ElementTree.Element) -> float:
    return figures(shape, ("rotation",))[0] % 360 if shape.get("rotation") else 0.0


def figures(shape: ElementTree.Element, names: tuple[str, ...]) -> list[float]:
    values = [shape.get(name) for name in names]
    try:
        return numbers([float(value or "") for value in values])
    except ValueError as error:
        raise LabelError(f"must have numbers as {', '.join(names)} but has {values}") from error


def runs(shape: ElementTree.Element) -> list[int]:
    try:
        return [int(run) for run in (shape.get("rle") or "").split(",")]
    except ValueError as error:
        raise LabelError("has a mask whose rle is not whole numbers") from error


def _mask(shape: ElementTree.Element, size: tuple[int, int]) -> str:
    """Counts of compressed RLE over the image, of run lengths row by row inside a box."""
    from pycocotools import mask as coco_mask

    left, top, width, height = (int(value) for value in figures(shape, PLACE))
    if width < 1 or height < 1:
        raise LabelError(f"has a mask without area: {width} x {height}")
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        raise LabelError(
            f"has a mask that leaves the image of {size[0]} x {size[1]}: {left}, {top}, {width} x {height}"
        )
    lengths = runs(shape)
    if min(lengths) < 0 or sum(lengths) != width * height:
        raise LabelError(f"has a mask whose rle does not fill {width} x {height} pixels")
    inside = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(np.uint8).reshape(height, width)
    whole = np.zeros((size[1], size[0]), np.uint8, order="F")
    whole[top : top + height, left : left + width] = inside
    return rle_mask({"counts": coco_mask.encode(whole)["counts"].decode("ascii")}, size)
