"""Stored pixels of every kind as 8-bit RGB.

===========================  ==========================================================================================
stored as                    becomes
===========================  ==========================================================================================
1 bit, grey, palette         the colours they stand for
transparency of any kind     composited on white; on black where what is to be seen is white itself, as writing made
                             for a dark page
CMYK, YCCK                   ``255 · (1 − C) · (1 − K)``; JPEGs of four channels are read as Adobe writes them, inverted
CIE L*a*b*                   sRGB by way of LittleCMS
12 and 16 bits a channel     the upper 8 bits
32-bit integers              0…255 is black to white if all values lie in it; else 0…65535; else lowest to highest
floating point               0…1 is black to white if all values lie in it; else 0…255; else lowest to highest. What is
                             not a finite number is black
===========================  ==========================================================================================

Embedded ICC profiles are not applied: detectors and embedders are trained on pictures that were loaded without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def grey_depth(image: Image.Image) -> int:
    """Bits of a grey value that Pillow keeps in 16. Known only before the image is loaded."""
    bits = getattr(image, "tag_v2", {}).get(258)
    return 12 if image.mode.startswith("I;16") and bits == (12,) else 16


def to_rgb(image: Image.Image, depth: int) -> Image.Image:
    """A loaded image in mode RGB; the image itself if it is that already.

    Args:
        image: Of any mode.
        depth: What `grey_depth` said before the image was loaded.
    """
    if image.mode.startswith("I;16"):
        return _grey16(image, depth)
    if image.mode == "I":
        return _grey(_int_to_8bit(np.asarray(image), sixteen_bits=image.format == "PPM"))
    if image.mode == "F":
        return _grey(_float_to_8bit(np.asarray(image)))
    if _transparent(image):
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # a colour of 16 bits, of which the pixels keep the upper 8
            image.info["transparency"] = tuple(value >> 8 for value in key)
        clear = image.convert("RGBA")
        ground = Image.new("RGB", clear.size, (0, 0, 0) if _is_white(clear) else (255, 255, 255))
        ground.paste(clear, mask=clear)
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


WHITE = 224
"""From this luma on a pixel is lost on a white ground."""


def _is_white(clear: Image.Image) -> bool:
    """Whether an RGBA image would be lost on white: 98 % of what is to be seen is white, and a twentieth is clear."""
    alpha = np.asarray(clear.getchannel("A"))
    seen = alpha >= 128
    if seen.mean() > 0.95 or not seen.any():
        return False
    luma = np.asarray(clear.convert("RGB").convert("L"))
    return bool((luma[seen] >= WHITE).mean() >= 0.98)


def _transparent(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is None:  # ICNS; `has_transparency_data` asserts that there is one
        return False
    return image.has_transparency_data


def _grey16(image: Image.Image, depth: int) -> Image.Image:
    values = np.asarray(image)
    grey = values >> (depth - 8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, 255, grey)
    return _grey(grey)


def _int_to_8bit(values: NDArray[np.int32], sixteen_bits: bool) -> NDArray[Any]:
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        return np.rint(_stretched(values))
    return values >> 8 if sixteen_bits or high > 255 else values


def _float_to_8bit(values: NDArray[Any]) -> NDArray[Any]:
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].min() if finite.any() else 0)
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        values = _stretched(values)
    elif high <= 1:
        values = values * 255
    return np.where(finite, np.rint(values), 0)


def _stretched(values: NDArray[Any]) -> NDArray[Any]:
    """Lowest value to 0, highest to 255; all 0 if they are the same."""
    wide = values.astype(np.float64)
    span = wide.max() - wide.min()
    return (wide - wide.min()) * (255 / span) if span else np.zeros_like(wide)


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
