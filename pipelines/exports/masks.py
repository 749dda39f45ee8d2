"""From a mask in run-length encoding to the polygons that COCO and YOLO readers turn back into it.

Masks are COCO compressed RLE (column by column, maskApi.c of pycocotools) over the upright image. A reader of COCO
fills a polygon whose corners lie between pixels; OpenCV's `fillPoly`, which YOLO readers use, fills one whose corners
are pixels and paints its border too. So the two formats need different polygons of the same mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCES = (1.0, 0.75, 0.5, 0.0)
"""Tolerances of the simplification (Douglas-Peucker) in pixels, the coarsest first."""

FAITHFUL = 0.99
"""Intersection over union with the mask, as a reader draws it, at which a simplified polygon is good enough."""

MAX_DIGITS = 7
"""Characters of one run: 35 bits, more than any image has pixels, and few enough that sums stay exact."""

MAX_RINGS = 200
"""Parts and holes of one mask that are joined, the largest; more of them are noise, and take seconds."""


class MaskError(ValueError):
    """A mask is no compressed RLE, or one of an image of another size."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask known to be whole.

    Attributes:
        counts: COCO compressed RLE.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        area: Pixels in the mask.
    """

    counts: str
    height: int
    width: int
    area: int

    def crop(self) -> tuple[np.ndarray, int, int]:
        """The part of the mask inside its bounding box: uint8 (h, w) of 0 and 1, and its left and top edge."""
        from pycocotools import mask as coco_mask

        rle = {"size": [self.height, self.width], "counts": self.counts}
        x, y, w, h = (int(value) for value in coco_mask.toBbox(rle))
        return np.ascontiguousarray(coco_mask.decode(rle)[y : y + h, x : x + w]), x, y


def read_mask(counts: str, height: int, width: int) -> Mask:
    """Check a mask against its image.

    Raises:
        MaskError: Not compressed RLE, or its runs do not add up to the image's pixels. pycocotools checks neither:
            it gives uninitialised memory for runs that are too short.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        codes = np.empty(0, np.int64)
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise MaskError("mask is not compressed RLE")
    # Five bits a character, the lowest first; 0x20 says that more follow, 0x10 in the last one that the number is
    # negative. From the fourth number on they are differences to the last but one.
    ends = np.flatnonzero(codes & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_DIGITS:
        raise MaskError("mask is not compressed RLE")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 0x1F) << 5 * places, starts)
    runs -= np.where(codes[ends] & 0x10, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise MaskError("mask is not compressed RLE")
    if runs.max() > height * width or runs.sum() != height * width:
        raise MaskError("mask has another size than the image")
    return Mask(counts, height, width, int(runs[1::2].sum()))


def outline(mask: Mask) -> list[float] | None:
    """The polygon that a COCO reader fills with this mask, or None if it takes more than one.

    Its corners are corners of pixels, so its extent is that of the mask. It is simplified with the coarsest of
    `TOLERANCES` that pycocotools draws with an IoU of `FAITHFUL`.

    Returns:
        x1, y1, x2, y2, … in pixels; None for a mask with holes or several parts.
    """
    import cv2
    from pycocotools import mask as coco_mask

    crop, left, top = mask.crop()
    # Each pixel becomes two by two, so that a contour keeps the two sides of a thin part apart.
    doubled = crop.repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) != 1:
        return None
    # Of the two halves of a pixel the first has an even index and the second an odd one: this maps them to its edges.
    edge = (np.asarray(contours[0]) + 1) // 2
    whole = {"size": [mask.height, mask.width], "counts": mask.counts}
    for tolerance in TOLERANCES:
        polygon = _simplify(edge, tolerance) + np.array([left, top])
        if len(polygon) < 3:
            continue
        points = polygon.reshape(-1).astype(float).tolist()
        drawn = coco_mask.merge(coco_mask.frPyObjects([points], mask.height, mask.width))
        if float(coco_mask.iou([drawn], [whole], [0])[0, 0]) >= FAITHFUL:
            return points
    return None


def joined_polygon(mask: Mask) -> np.ndarray:
    """One closed polygon that OpenCV's `fillPoly` fills with this mask.

    Holes and further parts are joined to it by bridges that are walked out and back, so a hole stays a hole and a part
    stays in. A bridge is painted one pixel wide: a part or hole that has fewer pixels than its bridge would paint
    wrongly is left out, and so are all but the `MAX_RINGS` largest. Simplified with the coarsest of `TOLERANCES` that
    is drawn with an IoU of `FAITHFUL`, or else with the one that is drawn best.

    Args:
        mask: Must not be empty.

    Returns:
        int64 (n, 2), n ≥ 3: x and y of pixels of the image; points repeat where the mask is thinner than two pixels.
    """
    import cv2

    crop, left, top = mask.crop()
    contours, hierarchy = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = np.asarray(hierarchy)[0, :, 3]
    rings = [_Ring(np.asarray(contour), bool(parent >= 0)) for contour, parent in zip(contours, parents, strict=True)]
    rings.sort(key=lambda ring: -ring.pixels)
    rings = sorted(rings[:MAX_RINGS], key=lambda ring: ring.is_hole)
    best, best_iou = np.zeros((0, 2), np.int64), -1.0
    for tolerance in TOLERANCES:
        polygon = _join(rings, tolerance, crop)
        drawn = np.zeros_like(crop)
        cv2.fillPoly(drawn, [polygon.astype(np.int32)], 1)
        iou = float((drawn & crop).sum() / (drawn | crop).sum())
        if iou > best_iou:
            best, best_iou = polygon, iou
        if iou >= FAITHFUL:
            break
    return best + np.array([left, top])


def smallest_rectangle(mask: Mask) -> list[tuple[float, float]]:
    """The four corners of the rectangle of least area, at any angle, that holds every pixel of the mask whole.

    Args:
        mask: Must not be empty.

    Returns:
        x and y in pixel edges of the image, in turn around the rectangle; they may lie outside of it.
    """
    import cv2

    crop, left, top = mask.crop()
    rows = np.flatnonzero(crop.any(axis=1))
    first = crop[rows].argmax(axis=1)
    end = crop.shape[1] - crop[rows, ::-1].argmax(axis=1)
    # The rectangle holds a row of pixels where it holds the corners of its two outermost ones.
    corners = np.stack([np.concatenate([first, first, end, end]), np.concatenate([rows, rows + 1, rows, rows + 1])], 1)
    points = cv2.boxPoints(cv2.minAreaRect(corners.astype(np.float32)))
    return [(float(x) + left, float(y) + top) for x, y in points]


class _Ring:
    """A closed contour and how many pixels would be wrong without it."""

    __slots__ = ("contour", "is_hole", "pixels")

    def __init__(self, contour: np.ndarray, is_hole: bool) -> None:
        import cv2

        self.contour = contour
        self.is_hole = is_hole
        points = contour[:, 0].astype(np.int64)
        border = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        # Pick's theorem. A hole's contour runs over the pixels around it, a part's over its own.
        self.pixels = cv2.contourArea(contour) + (1 - border / 2 if is_hole else 1 + border / 2)


def _simplify(contour: Any, tolerance: float) -> np.ndarray:
    import cv2

    return np.asarray(cv2.approxPolyDP(np.asarray(contour, np.int32), tolerance, True)).reshape(-1, 2).astype(np.int64)


def _join(rings: list[_Ring], tolerance: float, crop: np.ndarray) -> np.ndarray:
    """Splice rings into the first one, each at the nearest pair of corners."""
    from scipy.spatial import cKDTree

    polygon = _simplify(rings[0].contour, tolerance)
    for ring in rings[1:]:
        points = _simplify(ring.contour, tolerance)
        distances, nearest = cKDTree(points).query(polygon)
        here = int(np.argmin(distances))
        there = int(nearest[here])
        start, end = polygon[here], points[there]
        steps = int(np.abs(end - start).max()) + 1
        bridge = np.rint(np.linspace(start, end, steps)).astype(np.int64)
        if ring.pixels <= np.count_nonzero(crop[bridge[:, 1], bridge[:, 0]] == 0):
            continue
        tour = np.roll(points, -there, axis=0)
        polygon = np.concatenate([polygon[: here + 1], tour, tour[:1], polygon[here:]])
    return polygon if len(polygon) > 2 else polygon[[0, -1, 0]]
