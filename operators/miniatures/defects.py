"""Bad images: each kind shows one of the issues that `inspect` scores, under CleanVision's names, or cannot be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from labelmill.operators.miniatures.canvas import Pixels
from labelmill.operators.miniatures.duplicates import crop_window
from labelmill.operators.miniatures.exact import tone
from labelmill.operators.miniatures.transforms import move, scaling
from labelmill.operators.miniatures.world import Scene

DEFECTS = ("dark", "light", "blurry", "low_information", "grayscale", "odd_aspect_ratio", "odd_size")
"""Issues of images that can be read."""

BROKEN = ("truncated", "empty", "not_an_image")
"""Issues of files that cannot."""


def spoil(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """The scene with one issue. The truth says what was drawn, whether or not it can still be recognised.

    ================  ======================================================================================
    kind              what is done
    ================  ======================================================================================
    dark              scaled until the 99th percentile of brightness is 0.08…0.25 (CleanVision's limit: 0.32)
    light             washed out until the 5th percentile is 0.96…0.985 (limit: 0.95)
    blurry            Gaussian blur with a standard deviation of 3.5…5 % of the longer side
    low_information   one colour and a shade next to it; nothing is in it
    grayscale         no colour
    odd_aspect_ratio  a strip 0.15…0.3 times as high as wide or the reverse (limit: 0.35), of the same area
    odd_size          shrunk to 0.08…0.14 of its sides
    ================  ======================================================================================

    A blurry scene is left with a `sharpness` below 0.05, where good ones have 0.1 to 0.65. CleanVision's own `blurry`
    excuses pictures with an uneven histogram, as drawings have, and so finds nothing in this world.

    Raises:
        ValueError: `kind` is not one of `DEFECTS`.
    """
    import cv2

    pixels = scene.pixels
    height, width = pixels.shape[:2]
    if kind == "dark":
        gain = rng.uniform(0.08, 0.25) / max(0.25, float(np.percentile(brightness(pixels), 99)))
        return replace(scene, pixels=tone(pixels, gain))
    if kind == "light":
        left = (1 - rng.uniform(0.965, 0.985)) / max(0.1, 1 - float(np.percentile(brightness(pixels), 5)))
        return replace(scene, pixels=tone(pixels, left, 255 * (1 - left)))
    if kind == "blurry":
        return replace(scene, pixels=cv2.GaussianBlur(pixels, (0, 0), max(height, width) * rng.uniform(0.035, 0.05)))
    if kind == "low_information":
        plain = np.empty_like(pixels)
        plain[:] = rng.integers(40, 215, 3, dtype=np.uint8)
        plain[: 16 * int(rng.integers(1, height // 16))] += np.uint8(1)
        return Scene(plain, (), (), (), ())
    if kind == "grayscale":
        return replace(scene, pixels=cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
    if kind == "odd_aspect_ratio":
        return _strip(scene, rng.uniform(0.15, 0.3), rng)
    if kind == "odd_size":
        factor = rng.uniform(0.08, 0.14)
        wide, high = max(8, round(width * factor)), max(8, round(height * factor))
        return move(scene, scaling(wide / width, high / height), wide, high)
    raise ValueError(f"defect must be one of {', '.join(DEFECTS)} but is {kind!r}")


def break_file(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """What stands in a file that should have held the image `data`.

    Args:
        data: The encoded image.
        kind: ``truncated`` keeps 20…70 % of the bytes, ``empty`` none, ``not_an_image`` is a line of text.
        rng: Decides where to cut.

    Raises:
        ValueError: `kind` is not one of `BROKEN`.
    """
    if kind == "truncated":
        return data[: int(len(data) * rng.uniform(0.2, 0.7))]
    if kind == "empty":
        return b""
    if kind == "not_an_image":
        return b"This is a text, whatever the name of the file says.\n"
    raise ValueError(f"kind must be one of {', '.join(BROKEN)} but is {kind!r}")


def brightness(pixels: Pixels) -> np.ndarray:
    """Perceived brightness as CleanVision has it (the HSP colour model), float (h, w), 0…1."""
    red, green, blue = (pixels[:, :, channel].astype(np.float64) for channel in range(3))
    return np.asarray(np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2) / 255)


def _strip(scene: Scene, ratio: float, rng: np.random.Generator) -> Scene:
    height, width = scene.pixels.shape[:2]
    lying = rng.random() < 0.5
    wide, high = (width, max(8, round(width * ratio))) if lying else (max(8, round(height * ratio)), height)
    strip = move(scene, crop_window(scene, wide, high, rng), wide, high)
    factor = (width * height / (wide * high)) ** 0.5
    wider, higher = round(wide * factor), round(high * factor)
    return move(strip, scaling(wider / wide, higher / high), wider, higher)
