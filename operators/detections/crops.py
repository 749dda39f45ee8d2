"""What a box shows of an image, as a model of whole images should see it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.columns.schemas import SIDES

GREY = (122, 116, 104)
"""The mean colour of CLIP's training images, from its preprocessing."""


def box_array(detections: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Boxes of detections, (n, 4), xyxy; NaN for a side that is null."""
    return np.array([[each[side] for side in SIDES] for each in detections], np.float64).reshape(-1, 4)


def usable(boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    """Which boxes are four finite numbers and show some of an image of that size, (n,)."""
    with np.errstate(invalid="ignore"):
        inside = np.minimum(boxes[:, 2:], [width, height]) > np.maximum(boxes[:, :2], 0)
    good: NDArray[np.bool_] = np.asarray(inside.all(axis=1) & np.isfinite(boxes).all(axis=1))
    return good


def crop(pixels: np.ndarray, box: Sequence[float], margin: float, square: bool = False) -> NDArray[np.uint8]:
    """Cut a box out of an image.

    Args:
        pixels: uint8 RGB (height, width, 3).
        box: xyxy in pixels, as `usable` wants it.
        margin: What to show around it on each side, as a share of its longer side, where the image goes so far.
        square: Fill up with `GREY` to a square, so that no model squeezes or cuts what is long and thin.

    Returns:
        uint8 RGB (height, width, 3), C-contiguous, a copy.
    """
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = (float(side) for side in box)
    around = margin * max(x2 - x1, y2 - y1)
    left, top = max(0, math.floor(x1 - around)), max(0, math.floor(y1 - around))
    right, bottom = min(width, math.ceil(x2 + around)), min(height, math.ceil(y2 + around))
    cut = pixels[top:bottom, left:right]
    if not square:
        return cut.copy()
    side = max(cut.shape[:2])
    filled = np.empty((side, side, 3), np.uint8)
    filled[:] = GREY
    down, across = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    filled[down : down + cut.shape[0], across : across + cut.shape[1]] = cut
    return filled
