"""Polygons of a mask with the points between pixels, for tools that fill what lies inside: a hole is cut in by a seam.

Label Studio and COCO readers fill a polygon without painting its border, so a line walked out and back has no area. A
hole can hang on its part by such a seam and stay a hole. Parts stay polygons of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labelmill.pipelines.exports.masks import FAITHFUL, MAX_RINGS, TOLERANCES, Mask

Points = list[tuple[float, float]]


def outlines(mask: Mask) -> list[Points]:
    """Polygons that together fill the mask, one for each part, the largest first.

    Their points are corners of pixels, so their extent is that of the mask. All are simplified with the coarsest of
    `TOLERANCES` (Douglas-Peucker) that pycocotools draws with an IoU of `FAITHFUL`; the finest is exact but for rings
    beyond the `MAX_RINGS` largest.

    Args:
        mask: Must not be empty.

    Returns:
        x, y in pixels, three points or more for each polygon.
    """
    import cv2

    crop, left, top = mask.crop()
    # Each pixel becomes two by two, so that a contour keeps the two sides of a thin part apart.
    contours, hierarchy = cv2.findContours(
        crop.repeat(2, axis=0).repeat(2, axis=1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    parents = np.asarray(hierarchy)[0, :, 3]
    # Of the two halves of a pixel the first has an even index and the second an odd one: this maps them to its edges.
    rings = [
        ((np.asarray(contour)[:, 0] + 1) // 2, int(parent)) for contour, parent in zip(contours, parents, strict=True)
    ]
    sizes = [float(cv2.contourArea(points.astype(np.int32))) for points, _ in rings]
    kept = sorted(range(len(rings)), key=lambda index: (-sizes[index], index))[:MAX_RINGS]
    best: list[Points] = []
    best_iou = -1.0
    for tolerance in TOLERANCES:
        polygons = _polygons(rings, kept, tolerance, left, top)
        overlap = _iou(polygons, mask) if polygons else 0.0
        if overlap > best_iou:
            best, best_iou = polygons, overlap
        if overlap >= FAITHFUL:
            break
    return best


def _polygons(
    rings: list[tuple[np.ndarray, int]], kept: list[int], tolerance: float, left: int, top: int
) -> list[Points]:
    holes: dict[int, list[np.ndarray]] = {}
    for index in kept:
        points, parent = rings[index]
        if parent >= 0:
            holes.setdefault(parent, []).append(_simplify(points, tolerance))
    found = []
    for index in kept:
        points, parent = rings[index]
        if parent >= 0:
            continue
        polygon = _simplify(points, tolerance)
        if len(polygon) < 3:
            polygon = _simplify(points, 0.0)
        for hole in holes.get(index, []):
            if len(hole) >= 3:
                polygon = _cut(polygon, hole)
        found.append([(float(x + left), float(y + top)) for x, y in polygon])
    return found


def _simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    import cv2

    return np.asarray(cv2.approxPolyDP(points.astype(np.int32), tolerance, True)).reshape(-1, 2).astype(np.int64)


def _cut(polygon: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The polygon with a hole hung on it at the nearest pair of points."""
    distances = ((polygon[:, None, :] - hole[None, :, :]) ** 2).sum(axis=2)
    here, there = np.unravel_index(int(distances.argmin()), distances.shape)
    tour = np.roll(hole, -int(there), axis=0)
    return np.concatenate([polygon[: here + 1], tour, tour[:1], polygon[here:]])


def _iou(polygons: list[Points], mask: Mask) -> float:
    from pycocotools import mask as coco_mask

    flat: list[Any] = [[value for point in polygon for value in point] for polygon in polygons]
    drawn = coco_mask.merge(coco_mask.frPyObjects(flat, mask.height, mask.width))
    whole = {"size": [mask.height, mask.width], "counts": mask.counts}
    return float(coco_mask.iou([drawn], [whole], [0])[0, 0])
