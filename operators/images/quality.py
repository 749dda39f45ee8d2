"""How good a picture is, in numbers: the scores behind CleanVision's issues, sharpness and a perceptual hash.

`dark`, `light`, `low_information` and `blurry` are CleanVision's (github.com/cleanlab/cleanvision, 0.3): in
[0, 1], the lower the worse. There they are computed from every pixel as stored; here from the upright RGB pixels, which
is the same for pictures of mode RGB and L. The hash is that of ``imagehash.phash``.

A large picture would take longer to measure than to decode. So one of more than `EXACT_PIXELS` pixels is measured on a
grid of about as many pixels taken from it (dark, light, low_information), and scaled to a long side of `SCALED_SIDE`
(the rest). On photographs this moves dark, light and blurry by 0.001 in the median and 0.01 at most,
low_information by less than 0.001, and 0 to 4 of the 64 bits of the hash (none in 4 of 5 pictures). `blurry` itself
jumps by 0.18 where a histogram becomes uneven enough; a picture that is so near may fall on the other side.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

EXACT_PIXELS = 320 * 240
"""Up to here every figure is exactly the reference's."""

SCALED_SIDE = 256
"""Long side at which sharpness is measured."""

_BRIGHTNESS = np.array([[0.241, 0.691, 0.068]], dtype=np.float32)
_BLUR_SIDE = 64
_LAPLACIAN = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], dtype=np.float32)


def measure(pixels: NDArray[np.uint8], stored_grey: bool) -> dict[str, Any]:
    """Measure one picture.

    Args:
        pixels: uint8, (height, width, 3), RGB, upright.
        stored_grey: Whether the file holds one channel. CleanVision takes the entropy of what is stored, so a grey
            picture stored as RGB scores log2(3)/10 higher.

    Returns:
        `dark`, `light`, `low_information`, `blurry` and `sharpness`, floats in [0, 1]; `phash`, an unsigned 64-bit
        integer; and `phash_variants`, 8 of them.
    """
    height, width = pixels.shape[:2]
    exact = width * height <= EXACT_PIXELS
    seen = pixels if exact else _grid(pixels)
    picture = Image.fromarray(pixels if exact else _halved_luma(pixels))
    luma = picture.convert("L")
    scaled = _scaled(luma)
    stored = picture if exact and not stored_grey else Image.fromarray(seen[..., 0] if stored_grey else seen)
    dark, light = _darkness(seen)
    return {
        "dark": dark,
        "light": light,
        "low_information": min(1.0, stored.entropy() / 10),
        "blurry": _blurry(picture if exact else scaled, width, height),
        "sharpness": _sharpness(np.asarray(scaled)),
        **_phashes(luma if exact else scaled),
    }


def _grid(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """About `EXACT_PIXELS` of the pixels, evenly spread."""
    import cv2

    height, width = pixels.shape[:2]
    ratio = (EXACT_PIXELS / (width * height)) ** 0.5
    # An odd number of columns and rows seldom divides the size, so that the grid does not fall in step with a pattern.
    size = (min(width, round(width * ratio) | 1), min(height, round(height * ratio) | 1))
    return cast("NDArray[np.uint8]", cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST))


def _halved_luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma of the mean of 2 × 2 pixels, again and again; an odd last row or column is left out."""
    import cv2

    while max(pixels.shape[:2]) >= 2 * SCALED_SIDE and min(pixels.shape[:2]) >= 2 * _BLUR_SIDE:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        even = pixels[: 2 * height, : 2 * width]
        pixels = cast("NDArray[np.uint8]", cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
    return cast("NDArray[np.uint8]", cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def _scaled(luma: Image.Image) -> Image.Image:
    ratio = max(luma.size) / SCALED_SIDE
    if ratio <= 1:
        return luma
    return luma.resize((max(1, round(luma.width / ratio)), max(1, round(luma.height / ratio))))


def _darkness(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """The 99th percentile of brightness, √(.241 R² + .691 G² + .068 B²) / 255, and 1 minus the 5th."""
    import cv2

    squares = pixels.astype(np.float32)
    squares *= squares
    ordered = np.sort(cast("NDArray[np.float32]", cv2.transform(squares, _BRIGHTNESS)), axis=None)
    return _percentile(ordered, 0.99), 1 - _percentile(ordered, 0.05)


def _percentile(ordered: NDArray[np.float32], share: float) -> float:
    """Of the roots of sorted squares, between neighbours as NumPy does it, with 255 as 1."""
    place = share * (len(ordered) - 1)
    below = int(place)
    pair = np.sqrt(ordered[below : below + 2], dtype=np.float64)
    return min(1.0, float(pair[0] + (pair[-1] - pair[0]) * (place - below)) / 255)


def _blurry(picture: Image.Image, width: int, height: int) -> float:
    """Edges of a thumbnail, plus the unevenness of its histogram: flat drawings have few edges but are not blurred.

    Args:
        picture: The whole picture, or its luma, scaled.
        width: Of the whole picture.
        height: Of the whole picture.
    """
    ratio = max(width, height) / _BLUR_SIDE
    if ratio > 1:
        picture = picture.resize((max(int(width // ratio), 1), max(int(height // ratio), 1)))
    luma = picture.convert("L")
    edges = 1 - np.exp(-0.01 * np.std(np.asarray(luma.filter(ImageFilter.FIND_EDGES))))
    uneven = 1 - np.exp(-0.01 * np.std(luma.histogram()))
    return float(min(1.0, edges + (uneven if uneven > 0.18 else 0)))


def _sharpness(luma: NDArray[np.uint8]) -> float:
    """``1 − exp(−σ/100)``: σ is the standard deviation of the Laplacian of the scaled picture.

    The kernel (8 in the middle, −1 around it) and the scale of 100 are those of CleanVision's `blurry`, which sees
    only 64 pixels and so misses blur of a few pixels. A sharp photograph has 0.4 to 0.8. 0 is a flat picture.
    """
    import cv2

    _, deviation = cv2.meanStdDev(cv2.filter2D(luma, cv2.CV_16S, _LAPLACIAN, borderType=cv2.BORDER_REPLICATE))
    return float(1 - np.exp(-0.01 * deviation[0, 0]))


def _phashes(luma: Image.Image) -> dict[str, Any]:
    """Which of the 8 × 8 lowest frequencies lie above their median, row by row, the first in the highest bit.

    Ties are decided by rounding: of a flat or symmetric picture, imagehash compares the noise of floating point. To
    mirror a picture changes the sign of its odd frequencies, and to swap its axes swaps theirs: with both come all
    eight ways in which it may be turned and mirrored.
    """
    tiny = luma.resize((32, 32), Image.Resampling.LANCZOS)
    cosines = _cosines()
    upright = np.round(cosines @ np.asarray(tiny, dtype=np.float64) @ cosines.T, 6)
    down = np.array([1.0, -1.0] * 4)[:, None]
    mirrored = np.stack([upright, upright * down.T, upright * down, upright * down * down.T])
    frequencies = np.concatenate([mirrored, mirrored.transpose(0, 2, 1)]).reshape(8, 64)
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    hashes = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64).tolist()
    return {"phash": hashes[0], "phash_variants": hashes}


@cache
def _cosines() -> NDArray[np.float64]:
    """The 8 lowest frequencies of the discrete cosine transform (type II, not normalised) of 32 values."""
    return 2 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))
