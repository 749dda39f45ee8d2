"""Objects: 20 kinds × 8 colours, in six styles, turned, flipped and stretched."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from labelmill.operators.miniatures.canvas import (
    RGB,
    Canvas,
    Layer,
    Mask,
    Pixels,
    Points,
    mix,
    palette,
    ramp,
    supersampling,
)
from labelmill.operators.miniatures.exact import stretch
from labelmill.operators.miniatures.shapes import (
    ALT,
    BEAK,
    CORE,
    CREAM,
    EMPTY,
    GLASS,
    INK,
    LEAF,
    MAIN,
    RIM,
    WOOD,
    Part,
    Sheet,
)
from labelmill.operators.miniatures.shapes_made import MADE
from labelmill.operators.miniatures.shapes_natural import NATURAL

_DRAWINGS = {**MADE, **NATURAL}

# Hue in degrees (centre, spread), saturation and value (low, high).
_COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((358, 6), (0.82, 1.0), (0.72, 0.95)),
    "orange": ((27, 5), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((54, 4), (0.75, 1.0), (0.9, 1.0)),
    "green": ((125, 18), (0.6, 0.95), (0.5, 0.8)),
    "blue": ((220, 12), (0.7, 1.0), (0.65, 0.98)),
    "purple": ((283, 11), (0.55, 0.9), (0.5, 0.8)),
    "black": ((0, 180), (0.0, 0.25), (0.05, 0.16)),
    "white": ((0, 180), (0.0, 0.05), (0.94, 1.0)),
}

STYLES = ("flat", "outlined", "shaded", "striped", "dotted", "textured")
"""How an object's main surface is painted."""

HELD_OUT = frozenset(
    {
        ("car", "purple"),
        ("bus", "black"),
        ("boat", "orange"),
        ("airplane", "green"),
        ("bicycle", "yellow"),
        ("house", "blue"),
        ("cup", "yellow"),
        ("bottle", "white"),
        ("chair", "green"),
        ("umbrella", "purple"),
        ("key", "blue"),
        ("tree", "red"),
        ("flower", "black"),
        ("mushroom", "green"),
        ("fish", "red"),
        ("bird", "white"),
        ("butterfly", "orange"),
        ("cat", "blue"),
        ("apple", "purple"),
        ("star", "red"),
    }
)
"""The (kind, colour) pairs that no training sees: one of each kind, two or three of each colour."""

_LEVELS = 100  # palette entries from here on run from the main shade to the second


@dataclass(frozen=True, eq=False)
class Drawn:
    """An object whose form is fixed and whose paint is not mixed yet.

    Attributes:
        canvas: Its parts and pattern.
        colour: Name of its colour.
        style: One of `STYLES`.
        mask: bool (h, w), the pixels that it covers by at least half.
    """

    canvas: Canvas
    colour: str
    style: str
    mask: Mask

    def layer(self, rng: np.random.Generator, backdrop: RGB | None = None) -> Layer:
        """Mix the paint.

        Args:
            rng: Decides the shades.
            backdrop: What will be behind it, channels 0…1: an object of a similar colour gets a contrasting rim.
        """
        return self.canvas.layer(_paints(self.colour, self.style, rng, backdrop))


def kinds() -> tuple[str, ...]:
    """The kinds of objects, singular nouns, in canonical order."""
    return tuple(_DRAWINGS)


def colours() -> tuple[str, ...]:
    """The names of the colours, in canonical order."""
    return tuple(_COLOURS)


def pairs(which: str) -> tuple[tuple[str, str], ...]:
    """The (kind, colour) pairs of ``seen``, ``held_out`` or ``all``, in canonical order.

    Raises:
        ValueError: `which` is none of the three.
    """
    if which not in ("seen", "held_out", "all"):
        raise ValueError(f"pairs must be 'seen', 'held_out' or 'all' but is {which!r}")
    every = ((kind, colour) for kind in _DRAWINGS for colour in _COLOURS)
    return tuple(pair for pair in every if which == "all" or (pair in HELD_OUT) == (which == "held_out"))


def shade(colour: str, rng: np.random.Generator) -> RGB:
    """One of the shades that go by the colour's name, channels 0…1."""
    (hue, spread), saturation, value = _COLOURS[colour]
    turn = (hue + rng.uniform(-spread, spread)) / 360 % 1.0
    return colorsys.hsv_to_rgb(turn, rng.uniform(*saturation), rng.uniform(*value))


def nearest_colour(rgb: RGB) -> tuple[str, float]:
    """The name of the colour whose middle shade is nearest to a colour, channels 0…1; and how far it is, by Euclid."""
    apart = {}
    for name, ((hue, _), saturation, value) in _COLOURS.items():
        middle = colorsys.hsv_to_rgb(hue / 360, sum(saturation) / 2, sum(value) / 2)
        apart[name] = sum((a - b) ** 2 for a, b in zip(middle, rgb, strict=True)) ** 0.5
    return min(apart.items(), key=lambda found: found[1])


def _paints(colour: str, style: str, rng: np.random.Generator, backdrop: RGB | None) -> Pixels:
    main = shade(colour, rng)
    dark, light = colour == "black", colour == "white"
    white, black = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    if dark:
        second = mix(main, white, rng.uniform(0.16, 0.26))
    elif light:
        second = mix(main, black, rng.uniform(0.16, 0.26))
    elif rng.random() < 0.6:
        # A darker yellow reads as olive and a darker orange as brown, so these two stay nearer to the main shade.
        deepest = {"yellow": 0.2, "orange": 0.28}.get(colour, 0.42)
        second = mix(main, black, rng.uniform(0.6, 1.0) * deepest)
    else:
        second = mix(main, white, rng.uniform(0.25, 0.4))
    rim = mix(main, white, 0.12) if dark else mix(main, black, 0.2)
    if style == "outlined":
        rim = mix(main, white, 0.6) if dark else mix(main, black, 0.75)
    if backdrop is not None and sum(abs(a - b) for a, b in zip(main, backdrop, strict=True)) < 0.6:
        rim = mix(main, black if sum(backdrop) > 1.2 else white, 0.85)
    table = palette(
        {
            RIM: rim,
            INK: mix(main, white, 0.38) if dark else (0.1, 0.1, 0.12),
            GLASS: (0.42, 0.5, 0.58) if light else (0.74, 0.85, 0.92),
            WOOD: (0.45, 0.3, 0.18),
            LEAF: (0.22, 0.48, 0.2),
            CREAM: (0.72, 0.68, 0.58) if light else (0.95, 0.92, 0.84),
            BEAK: (0.95, 0.62, 0.1) if colour not in ("orange", "yellow") else (0.55, 0.25, 0.1),
            CORE: (0.38, 0.22, 0.1) if colour in ("yellow", "orange", "white") else (0.98, 0.82, 0.2),
        }
    )
    table[_LEVELS:] = ramp(main, second, 256 - _LEVELS)
    table[ALT] = table[255]
    return table


def _pattern(style: str, height: int, width: int, rng: np.random.Generator) -> Pixels | int:
    """Palette levels of the main surface: one for all of it, or uint8 (height, width)."""
    if style in ("flat", "outlined"):
        return _LEVELS
    top, size = 255 - _LEVELS, max(height, width)
    if style == "textured":
        cells = int(rng.integers(8, 16))
        grain = rng.integers(_LEVELS, 256, (cells, cells), dtype=np.uint8)
        return stretch(grain, width, height)
    if style == "dotted":
        period = size * rng.uniform(0.1, 0.17)
        radius = period * rng.uniform(0.22, 0.32)
        squares = [((np.arange(n) % period) - period / 2) ** 2 for n in (height, width)]
        inside = (radius**2 - squares[0])[:, None].astype(np.float32) > squares[1][None, :].astype(np.float32)
        return inside * np.uint8(top) + np.uint8(_LEVELS)
    angle = rng.uniform(0, 2 * np.pi)
    across, along = np.cos(angle) * np.arange(width), np.sin(angle) * np.arange(height)
    if style == "shaded":
        low, high = across.min() + along.min(), across.max() + along.max()
        unit = top / (high - low)
        field = ((across - low) * unit)[None, :].astype(np.float32) + (along * unit)[:, None].astype(np.float32)
        return field.astype(np.uint8) + np.uint8(_LEVELS)
    # Stripes: the low byte of a fixed-point phase, 256 to the period.
    phase = 256 / (size * rng.uniform(0.1, 0.2))
    steps = (across * phase).astype(np.int32)[None, :] + (along * phase).astype(np.int32)[:, None]
    return ((steps & 255) < 102) * np.uint8(top) + np.uint8(_LEVELS)


def _posed(parts: list[Part], size: float, rng: np.random.Generator) -> tuple[list[Points], float, int, int]:
    """Turn, flip and stretch the parts so that their longer side is `size` pixels.

    Returns:
        The points of every part, pixels per sheet unit, and the width and height of the layer that holds them.
    """
    stretch = rng.uniform(0.86, 1.16)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.radians(rng.uniform(-40, 40))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([flip * stretch, 1 / stretch])
    every = np.concatenate([part.points for part in parts]) @ matrix.T
    counts = [len(part.points) for part in parts]
    margin = np.repeat([part.width / 2 for part in parts], counts)[:, None]
    shown = np.repeat([part.role != EMPTY for part in parts], counts)
    low, high = (every - margin)[shown].min(axis=0), (every + margin)[shown].max(axis=0)
    scale = size / float((high - low).max())
    width, height = (int(side) for side in np.ceil((high - low) * scale) + 2)
    placed = (every - low) * scale + 1.0
    return np.split(placed, np.cumsum(counts)[:-1]), scale, width, height


def draw(kind: str, colour: str, size: float, rng: np.random.Generator, style: str | None = None) -> Drawn:
    """Draw one object.

    Args:
        kind: One of `kinds()`.
        colour: One of `colours()`.
        size: Longer side of what is visible, in pixels.
        rng: Decides everything that is left open.
        style: One of `STYLES`; any of them if None.

    Raises:
        ValueError: The kind, colour or style is not one of those.
    """
    for what, value, known in (("kind", kind, _DRAWINGS), ("colour", colour, _COLOURS), ("style", style, STYLES)):
        if value not in known and not (what == "style" and value is None):
            raise ValueError(f"{what} must be one of {', '.join(known)} but is {value!r}")
    if style is None:
        style = STYLES[int(rng.integers(len(STYLES)))]
    sheet = Sheet(rng)
    _DRAWINGS[kind](sheet)
    placed, scale, width, height = _posed(sheet.parts, size, rng)
    canvas = Canvas(width, height, supersampling(size))
    for part, points in zip(sheet.parts, placed, strict=True):
        if part.width:
            canvas.stroke(points, part.width * scale, part.role, part.closed)
        else:
            canvas.fill(points, part.role)
    tall, wide = canvas.index.shape
    levels = _pattern(style, tall, wide, rng)
    np.copyto(canvas.index, levels, where=canvas.index == MAIN)
    canvas.rim(max(0.8, size * (0.03 if style == "outlined" else 0.013)), RIM)
    return Drawn(canvas, colour, style, canvas.coverage() >= 128)
