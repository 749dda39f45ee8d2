"""The numbers of a YOLO label's line: boxes, polygons and rotated rectangles as shares of the image's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labelmill.pipelines.exports.dataset import ExportImage
from labelmill.pipelines.exports.labels import MIN_SIDE, Label
from labelmill.pipelines.exports.masks import joined_polygon, smallest_rectangle

UNITS = 1_000_000
"""Six decimals."""

PIXEL = 0.49
"""Added to a pixel's index in a polygon: its centre, short of the half. Ultralytics truncates what it reads and
supervision rounds; both get the pixel that was meant. Without it, six decimals of 1/3 come back as the pixel before."""

THIN_WORD = f"word is less than {MIN_SIDE} px wide or high inside the image"

Point = tuple[float, float]


def line(class_id: int, numbers: Sequence[float]) -> str:
    """One line of a label file, without its end."""
    return " ".join([str(class_id), *(f"{number:.6f}" for number in numbers)])


def box(label: Label, image: ExportImage) -> list[float]:
    """Centre and size as shares, such that the box they give back does not reach outside the image."""
    spans = []
    sides = ((label.box[0], label.box[2], image.width), (label.box[1], label.box[3], image.height))
    for low, high, size in sides:
        start, end = round(low / size * UNITS), round(high / size * UNITS)
        end -= (end - start) % 2  # An odd span would have a centre of seven decimals.
        spans.append(((start + end) // 2 / UNITS, (end - start) / UNITS))
    (x, w), (y, h) = spans
    return [x, y, w, h]


def polygon(label: Label, image: ExportImage) -> list[float]:
    """Corners of the mask's polygon, or of the box where there is no mask."""
    if label.mask is None:
        return _shares(_corners(label.box), image)
    return _shares([(x + PIXEL, y + PIXEL) for x, y in joined_polygon(label.mask).tolist()], image)


def rectangle(label: Label, image: ExportImage) -> list[float]:
    """The four corners of the smallest rectangle around the mask, at any angle, or of the box if there is no mask."""
    corners = _corners(label.box) if label.mask is None else smallest_rectangle(label.mask)
    return _shares(_inside(corners, image), image)


def quad(corners: Sequence[Point], image: ExportImage) -> list[float]:
    """The four corners of a word; none if it is so thin inside the image that there is nothing to label.

    Args:
        corners: In pixels, inside the image.
        image: Whose word it is.
    """
    import cv2

    if min(cv2.minAreaRect(np.array(corners, np.float32))[1]) < MIN_SIDE:
        return []
    return _shares(corners, image)


def _corners(sides: tuple[float, float, float, float]) -> list[Point]:
    x1, y1, x2, y2 = sides
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _inside(corners: Sequence[Point], image: ExportImage) -> list[Point]:
    """Corners outside moved to the image's edge: Ultralytics leaves out an image whose labels reach beyond it."""
    return [(min(max(x, 0.0), image.width), min(max(y, 0.0), image.height)) for x, y in corners]


def _shares(points: Sequence[Point], image: ExportImage) -> list[float]:
    return [value for x, y in points for value in (x / image.width, y / image.height)]
