"""What lies behind the things, and what a camera and a codec do to a picture."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from labelmill.operators.miniatures.canvas import RGB, Pixels, look_up, mix, ramp, to_bytes
from labelmill.operators.miniatures.exact import blend, stretch, through, tone
from labelmill.operators.miniatures.shapes import ellipse


def background(width: int, height: int, rng: np.random.Generator) -> Pixels:
    """A gradient or texture with distractor shapes on it, uint8 (height, width, 3)."""
    pixels = _surface(width, height, rng)
    _distract(pixels, rng)
    return pixels


def _muted(rng: np.random.Generator) -> RGB:
    # Neither very dark nor very light: black and white objects must stand out.
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.42), rng.uniform(0.32, 0.86))


def _surface(width: int, height: int, rng: np.random.Generator) -> Pixels:
    import cv2

    first = _muted(rng)
    second = mix(first, _muted(rng), rng.uniform(0.25, 0.9))
    choice = ("gradient", "radial", "clouds", "grain", "planks", "tiles", "horizon")[int(rng.integers(7))]
    side = max(width, height)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle) / side, np.sin(angle) / side
    x, y = np.arange(width), np.arange(height)
    field: Pixels
    if choice == "gradient":
        low, high = (x * cos).min() + (y * sin).min(), (x * cos).max() + (y * sin).max()
        unit = 255 / (high - low)
        field = _sum((x * cos - low) * unit, y * sin * unit, np.float32).astype(np.uint8)
    elif choice == "radial":
        ox, oy = rng.uniform(0, width), rng.uniform(0, height)
        far = np.hypot(max(ox, width - ox), max(oy, height - oy))
        field = np.sqrt(_sum((x - ox) ** 2, (y - oy) ** 2, np.float32) * np.float32((255 / far) ** 2)).astype(np.uint8)
    elif choice == "clouds":
        wide, narrow = int(rng.integers(3, 7)), int(rng.integers(12, 28))
        field = blend(_noise(width, height, wide, rng), _noise(width, height, narrow, rng), 0.35)
    elif choice == "grain":
        fine, wide = int(side / rng.uniform(2, 5)), int(rng.integers(4, 9))
        field = blend(_noise(width, height, fine, rng), _noise(width, height, wide, rng), 0.5)
    elif choice == "planks":
        # Fixed point, 256 to the plank: the low byte says where in the plank, the rest says which plank.
        band = _sum(x * cos, y * sin, np.int32, 256 * rng.uniform(5, 14))
        shades = rng.integers(30, 230, 256).astype(np.uint8)
        field = np.where((band & 255) < 20, np.uint8(0), shades[(band >> 8) & 255])
    elif choice == "tiles":
        n = 256 * rng.uniform(5, 12)
        odd = ((_sum(x * cos, y * sin, np.int32, n) ^ _sum(x * sin, -y * cos, np.int32, n)) >> 8) & 1
        field = odd.astype(np.uint8) * np.uint8(rng.uniform(90, 255))
    else:
        line = height * rng.uniform(0.35, 0.75)
        ground = tone(_noise(width, height, int(rng.integers(20, 60)), rng), 0.35, 160)
        field = np.where((y < line)[:, None], (y * (110 / line)).clip(0, 255).astype(np.uint8)[:, None], ground)
    return cv2.cvtColor(look_up(field, ramp(first, second, 256)), cv2.COLOR_RGBA2RGB)


def _sum(x: npt.NDArray[Any], y: npt.NDArray[Any], dtype: Any, scale: float = 1.0) -> npt.NDArray[Any]:
    """x + y over the image, (height, width), each scaled and then cast."""
    return np.asarray((x * scale).astype(dtype)[None, :] + (y * scale).astype(dtype)[:, None])


def _noise(width: int, height: int, cells: int, rng: np.random.Generator) -> Pixels:
    """Smooth noise with about `cells` bumps along the longer side, uint8 (height, width)."""
    side = max(width, height)
    rows, columns = max(2, cells * height // side), max(2, cells * width // side)
    grid = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    return stretch(grid, width, height)


def _distract(pixels: Pixels, rng: np.random.Generator) -> None:
    """Up to ten plain shapes that are no kind of object: triangles, boxes, ellipses, rings, crosses, zigzags."""
    import cv2

    height, width = pixels.shape[:2]
    side = min(width, height)
    for _ in range(int(rng.integers(0, 11))):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), side * rng.uniform(0.015, 0.09)
        behind = pixels[min(int(y), height - 1), min(int(x), width - 1)] / 255.0
        vivid = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.95))
        colour = to_bytes(mix((behind[0], behind[1], behind[2]), vivid, rng.uniform(0.3, 0.9))).tolist()
        turn, form = rng.uniform(0, 360), int(rng.integers(6))
        thick = max(1, round(radius * 0.3))
        if form < 2:
            stretch = rng.uniform(0.5, 1.0)
            outline = ellipse(x, y, radius, radius * stretch, turn, turn + 360, n=3 + form)
        elif form < 4:
            outline = ellipse(x, y, radius, radius * rng.uniform(0.4, 1.0), turn=turn)
        elif form == 4:
            outline = ellipse(x, y, radius, radius, turn, turn + 360, n=4)
        else:
            outline = np.column_stack([x + radius * np.linspace(-1, 1, 6), y + radius * 0.4 * (np.arange(6) % 2)])
        points = np.rint(outline * 16).astype(np.int32)
        if form == 3:
            cv2.polylines(pixels, [points], True, colour, thick, cv2.LINE_AA, 4)
        elif form == 4:
            cv2.polylines(pixels, [points[[0, 2]], points[[1, 3]]], False, colour, thick, cv2.LINE_AA, 4)
        elif form == 5:
            cv2.polylines(pixels, [points], False, colour, thick, cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(pixels, [points], colour, cv2.LINE_AA, 4)


@lru_cache(maxsize=1)
def _bell() -> npt.NDArray[np.float64]:
    """256 quantiles of the standard normal distribution."""
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])


def add_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add normal noise of standard deviation `sigma` grey levels, independent in every channel."""
    import cv2

    # Random bytes through a table of quantiles: ten times faster than drawing normal numbers.
    raw = np.frombuffer(rng.bytes(pixels.size), np.uint8).reshape(pixels.shape)
    grain = _bell() * sigma
    return cv2.subtract(cv2.add(pixels, through(raw, grain)), through(raw, -grain))


def jpeg_round_trip(pixels: Pixels, quality: int) -> Pixels:
    """What is left after saving as JPEG at that quality, 1…100, and reading back."""
    import cv2

    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[:, :, ::-1])


def photograph(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Light, blur, noise and JPEG artefacts, each by chance and all mild. Nothing moves."""
    import cv2

    if rng.random() < 0.5:
        gain, lift = rng.uniform(0.85, 1.1), rng.uniform(-12, 12)
        pixels = tone(pixels, gain, lift)
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 0.9))
    if rng.random() < 0.5:
        pixels = add_noise(pixels, rng.uniform(1.5, 8), rng)
    if rng.random() < 0.4:
        pixels = jpeg_round_trip(pixels, int(rng.integers(45, 92)))
    return pixels
