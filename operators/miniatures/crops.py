"""Single things for training: an object, a word, a face, each as a detector would cut it out."""

from __future__ import annotations

import numpy as np

from labelmill.operators.miniatures.backgrounds import background, photograph
from labelmill.operators.miniatures.canvas import Layer, Pixels, mean_colour
from labelmill.operators.miniatures.faces import draw_head
from labelmill.operators.miniatures.objects import draw, pairs
from labelmill.operators.miniatures.signs import print_sign


def draw_object(kind: str, colour: str, rng: np.random.Generator, size: int = 64) -> Pixels:
    """One object in a picture of its own, uint8 (size, size, 3).

    It fills 60 to 98 % of the side. In one of four a seen pair peeps out from behind it at an edge.

    Args:
        kind: One of `kinds()`.
        colour: One of `colours()`.
        rng: Decides everything that is left open.
        size: Side in pixels, at least 16.

    Raises:
        ValueError: The kind or colour is not known, or the size is too small.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels but is {size}")
    pixels = background(size, size, rng)
    if rng.random() < 0.25:
        seen = pairs("seen")
        other = draw(*seen[int(rng.integers(len(seen)))], size * rng.uniform(0.4, 0.8), rng)
        angle, far = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.6, 0.75)
        _centred(pixels, other.layer(rng), size / 2 + far * np.cos(angle), size / 2 + far * np.sin(angle))
    drawn = draw(kind, colour, size * rng.uniform(0.6, 0.98), rng)
    slack = max(0.0, (size - max(drawn.mask.shape)) / 2)
    middle = size / 2 + rng.uniform(-slack, slack, 2)
    _centred(pixels, drawn.layer(rng, mean_colour(pixels)), *middle)
    return photograph(pixels, rng)


def draw_word(text: str, rng: np.random.Generator, height: float | None = None) -> Pixels:
    """One word on a sign, cut out by its upright box with a small error, uint8 (h, w, 3).

    Args:
        text: What to print.
        rng: Decides font, colours, turn and everything else that is left open.
        height: Font size in pixels; 14 to 36 if None.

    Raises:
        ValueError: The text is empty.
    """
    printed = print_sign([[text]], rng.uniform(14, 36) if height is None else height, rng)
    pixels = background(*printed.layer.size, rng)
    printed.layer.over(pixels, 0, 0)
    return _cut(photograph(pixels, rng), printed.quads[0].min(axis=0), printed.quads[0].max(axis=0), rng, 0.08)


def draw_face(
    rng: np.random.Generator, size: float = 96, yaw: float | None = None, pitch: float | None = None
) -> tuple[Pixels, float, float]:
    """One face, cut out by its box with a small error.

    Args:
        rng: Decides everything that is left open.
        size: Height of the head in pixels.
        yaw: Horizontal gaze in degrees, −52…52, > 0 to the left edge of the image; any if None.
        pitch: Vertical gaze in degrees, −33…33, > 0 up; any if None.

    Returns:
        The picture, uint8 (h, w, 3), the yaw and the pitch.

    Raises:
        ValueError: An angle is outside its range.
    """
    face = draw_head(size, rng, yaw, pitch)
    pixels = background(*face.layer.size, rng)
    face.layer.over(pixels, 0, 0)
    rows, columns = (np.flatnonzero(face.layer.mask.any(axis=axis)) for axis in (1, 0))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1] + 1, rows[-1] + 1])
    return _cut(photograph(pixels, rng), low, high, rng, 0.04), face.yaw, face.pitch


def _centred(pixels: Pixels, layer: Layer, x: float, y: float) -> None:
    width, height = layer.size
    layer.over(pixels, round(x - width / 2), round(y - height / 2))


def _cut(pixels: Pixels, low: np.ndarray, high: np.ndarray, rng: np.random.Generator, error: float) -> Pixels:
    """Cut out a box whose sides are off by up to `error` of its shorter side, more often outward."""
    reach = float((high - low).min()) * error
    (x1, y1), (x2, y2) = low - rng.uniform(-0.4, 1, 2) * reach, high + rng.uniform(-0.4, 1, 2) * reach
    height, width = pixels.shape[:2]
    left, top = max(0, round(x1)), max(0, round(y1))
    return np.ascontiguousarray(pixels[top : min(height, round(y2)), left : min(width, round(x2))])
