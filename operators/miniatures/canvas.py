"""Drawing by index: one byte per pixel says what is there, a palette says what colour that is.

Shapes are drawn several times larger than needed and averaged down, which gives smooth edges and an exact coverage.
Coordinates are pixels of the finished layer, origin at the top left corner of the top left pixel, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]  # always uint8; cv2 does not say so in its types
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]
RGB = tuple[float, float, float]

_SHIFT = 4  # cv2 takes fixed-point coordinates: 1/16 of a supersampled pixel


@dataclass(frozen=True, eq=False)
class Layer:
    """A drawn thing, ready to be laid over an image.

    Attributes:
        rgba: uint8 (h, w, 4): colour, already multiplied by the coverage, and coverage, 0 outside and 255 inside.
    """

    rgba: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgba.shape[1], self.rgba.shape[0]

    @property
    def mask(self) -> Mask:
        """bool (h, w): pixels that are covered by at least half."""
        return self.rgba[:, :, 3] >= 128

    def over(self, pixels: Pixels, x: int, y: int) -> None:
        """Lay the layer over `pixels` in place, its top left corner at (x, y); what lies outside is cut off."""
        import cv2

        width, height = self.size
        rows, columns = overlap(y, height, pixels.shape[0]), overlap(x, width, pixels.shape[1])
        if rows is None or columns is None:
            return
        part = self.rgba[rows[1], columns[1]]
        clear = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(part, 3)), cv2.COLOR_GRAY2RGB)
        kept = cv2.multiply(pixels[rows[0], columns[0]], clear, scale=1 / 255)
        pixels[rows[0], columns[0]] = cv2.add(kept, cv2.cvtColor(part, cv2.COLOR_RGBA2RGB))


def overlap(start: int, length: int, limit: int) -> tuple[slice, slice] | None:
    """Where ``start … start + length`` meets ``0 … limit``: as slices of the whole and of the part, or None."""
    first, last = max(start, 0), min(start + length, limit)
    return (slice(first, last), slice(first - start, last - start)) if first < last else None


def mask_box(mask: Mask) -> tuple[float, float, float, float] | None:
    """The smallest xyxy box, in pixel edges, around the true pixels; None when there are none."""
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def mean_colour(pixels: Pixels) -> RGB:
    """The mean of an image, channels 0…1."""
    import cv2

    red, green, blue, _ = cv2.mean(pixels)
    return red / 255, green / 255, blue / 255


class Canvas:
    """An index image, `supersample` times larger than the layer it becomes. Index 0 is empty."""

    def __init__(self, width: int, height: int, supersample: int) -> None:
        self.width, self.height, self.supersample = width, height, supersample
        self.index: Pixels = np.zeros((height * supersample, width * supersample), np.uint8)

    def _fixed(self, points: Points) -> npt.NDArray[np.int32]:
        # cv2 puts integer coordinates on pixel centres.
        return np.rint((points * self.supersample - 0.5) * (1 << _SHIFT)).astype(np.int32)

    def fill(self, points: Points, index: int) -> None:
        """Fill a polygon, float (n, 2)."""
        import cv2

        cv2.fillPoly(self.index, [self._fixed(points)], index, cv2.LINE_8, _SHIFT)

    def stroke(self, points: Points, width: float, index: int, closed: bool = False) -> None:
        """Draw a line of `width` pixels along the points, float (n, 2), with round joints."""
        import cv2

        thick = max(1, round(width * self.supersample))
        cv2.polylines(self.index, [self._fixed(points)], closed, index, thick, cv2.LINE_8, _SHIFT)

    def rim(self, width: float, index: int) -> None:
        """Recolour the `width` outermost pixels of everything drawn so far."""
        import cv2

        thick = max(1, round(width * self.supersample))
        solid = cv2.copyMakeBorder((self.index > 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * thick + 1, 2 * thick + 1))
        inner = cv2.erode(solid, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)[1:-1, 1:-1]
        self.index[(self.index > 0) & (inner == 0)] = index

    def coverage(self) -> Pixels:
        """How much of each pixel of the layer is covered, uint8 (height, width): 0 none, 255 all."""
        import cv2

        solid = cv2.threshold(self.index, 0, 255, cv2.THRESH_BINARY)[1]
        return cv2.resize(solid, (self.width, self.height), interpolation=cv2.INTER_AREA)

    def layer(self, palette: Pixels) -> Layer:
        """Colour by `palette`, uint8 (256, 4) whose entry 0 is zero, and average down."""
        import cv2

        size = (self.width, self.height)
        return Layer(cv2.resize(look_up(self.index, palette), size, interpolation=cv2.INTER_AREA))


def supersampling(size: float) -> int:
    """How many times larger to draw something of `size` pixels: more for what is small."""
    return 4 if size < 56 else 2


def palette(entries: dict[int, RGB]) -> Pixels:
    """A palette, uint8 (256, 4) RGBA, from colours with channels 0…1. Entry 0 is clear, the others are opaque."""
    table = np.zeros((256, 4), np.uint8)
    table[1:, 3] = 255
    table[list(entries), :3] = to_bytes(list(entries.values()))
    return table


def to_bytes(colours: npt.ArrayLike) -> Pixels:
    """Channels 0…1, clipped to that range, as uint8 of the same shape."""
    return np.rint(np.clip(np.asarray(colours, np.float64), 0.0, 1.0) * 255).astype(np.uint8)


def ramp(first: RGB, second: RGB, steps: int) -> Pixels:
    """`steps` opaque colours from `first` to `second`, uint8 (steps, 4) RGBA."""
    share = np.arange(steps)[:, None] / (steps - 1)
    return to_bytes((*first, 1.0) * (1 - share) + (*second, 1.0) * share)


def look_up(index: Pixels, table: Pixels) -> Pixels:
    """Colours from a palette: uint8 (h, w) through uint8 (256, 4) to uint8 (h, w, 4)."""
    # Four bytes as one number: several times faster than indexing rows.
    whole = np.ascontiguousarray(table).view(np.uint32).ravel()
    return whole.take(index, mode="clip").view(np.uint8).reshape(*index.shape, 4)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """`first` with `share` (0…1) of `second` in it."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue
