"""Pixel arithmetic that gives the same bytes on every processor.

OpenCV's `addWeighted`, `warpAffine` and cubic `resize` round differently with and without AVX or IPP (tried with OpenCV
5.0). What is here uses whole numbers, so that a scene is the same wherever it is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from labelmill.operators.miniatures.canvas import Pixels, Points

Matrix = Points
"""float (2, 3): maps pixel edges (x, y, 1) of the old image to pixel edges (x, y) of the new one."""

_BITS = 16  # of a pixel, in sample positions


def tone(pixels: Pixels, gain: float, lift: float = 0.0) -> Pixels:
    """Every value times `gain` plus `lift`, rounded and cut to 0…255."""
    return through(pixels, np.arange(256) * gain + lift)


def through(pixels: Pixels, table: npt.NDArray[Any]) -> Pixels:
    """Every value replaced by its entry in `table`, float (256,), rounded and cut to 0…255."""
    import cv2

    return np.asarray(cv2.LUT(pixels, np.rint(table).clip(0, 255).astype(np.uint8)))


def blend(first: Pixels, second: Pixels, share: float) -> Pixels:
    """`first` with `share` of `second` in it, in steps of 1/256; a share outside 0…1 moves away from one of them."""
    weight = round(share * 256)
    if 0 <= weight <= 256:
        mixed = first * np.uint16(256 - weight)
        mixed += second * np.uint16(weight)
        mixed += np.uint16(128)
        return (mixed >> 8).astype(np.uint8)
    wide = first.astype(np.int32) * (256 - weight) + second.astype(np.int32) * weight + 128
    return (wide >> 8).clip(0, 255).astype(np.uint8)


def stretch(image: Pixels, width: int, height: int) -> Pixels:
    """Resize by linear interpolation, for what gets larger."""
    import cv2

    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT))


class Warp:
    """Linear interpolation at the places that an affine matrix asks for.

    Args:
        matrix: From the old image to the new one, pixel edges, invertible.
        old: Width and height of the images that go in.
        new: Width and height of those that come out.
    """

    def __init__(self, matrix: Matrix, old: tuple[int, int], new: tuple[int, int]) -> None:
        (a, b, c), (d, e, f) = matrix
        scale = (1 << _BITS) / (a * e - b * d)
        x, y = np.arange(new[0]) + 0.5, np.arange(new[1])[:, None] + 0.5
        half = 0.5 * (1 << _BITS)
        across = _fixed((x - c) * e * scale - half) - _fixed((y - f) * b * scale)
        along = _fixed((y - f) * a * scale - half) - _fixed((x - c) * d * scale)
        # One pixel of margin on each side stands for everything beyond the image.
        self._old, self._new = old, new
        self._columns = ((across >> _BITS) + 1).clip(0, old[0]).ravel()
        self._rows = ((along >> _BITS) + 1).clip(0, old[1]).ravel()
        beyond_x = (across >> _BITS < -1) | (across >> _BITS >= old[0])
        beyond_y = (along >> _BITS < -1) | (along >> _BITS >= old[1])
        self._right = np.where(beyond_x, 0, across >> (_BITS - 8) & 255).ravel().astype(np.int32)
        self._below = np.where(beyond_y, 0, along >> (_BITS - 8) & 255).ravel().astype(np.int32)
        self._right[(across >> _BITS >= old[0]).ravel()] = 256
        self._below[(along >> _BITS >= old[1]).ravel()] = 256

    def __call__(self, image: Pixels, continued: bool) -> Pixels:
        """Warp uint8 (h, w) or (h, w, c); beyond the image its edge is `continued`, or there is zero."""
        import cv2

        border = cv2.BORDER_REPLICATE if continued else cv2.BORDER_CONSTANT
        padded = np.asarray(cv2.copyMakeBorder(image, 1, 1, 1, 1, border, value=(0, 0, 0, 0)))
        planes = padded.reshape(padded.shape[0] * padded.shape[1], -1).astype(np.int32).T
        width = self._old[0] + 2
        here = self._rows * width + self._columns
        mixed = np.empty((len(here), len(planes)), np.uint8)
        for channel, plane in enumerate(np.ascontiguousarray(planes)):
            upper, lower = (
                plane.take(start) * (256 - self._right) + plane.take(start + 1) * self._right
                for start in (here, here + width)
            )
            mixed[:, channel] = (upper * (256 - self._below) + lower * self._below + (1 << 15)) >> 16
        return mixed.reshape(self._new[1], self._new[0], *image.shape[2:])


def _fixed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.rint(values).astype(np.int64)
