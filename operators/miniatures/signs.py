"""Signs with words on them, in the fonts that Matplotlib ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from labelmill.operators.miniatures.canvas import RGB, Canvas, Layer, Pixels, Points, look_up, mix, palette, ramp
from labelmill.operators.miniatures.exact import Matrix, Warp
from labelmill.operators.miniatures.shapes import ellipse, rounded

FONTS = (
    "DejaVuSans-Bold.ttf",
    "DejaVuSans.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBolIta.ttf",
    "cmb10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
"""Font files below Matplotlib's ``mpl-data/fonts/ttf``."""

# Board, text: pairs that differ enough in lightness to be read.
_SCHEMES: tuple[tuple[RGB, RGB], ...] = (
    ((0.96, 0.96, 0.94), (0.08, 0.08, 0.1)),
    ((0.96, 0.96, 0.94), (0.65, 0.08, 0.08)),
    ((0.96, 0.96, 0.94), (0.08, 0.2, 0.55)),
    ((0.98, 0.85, 0.2), (0.08, 0.08, 0.08)),
    ((0.95, 0.6, 0.15), (0.1, 0.06, 0.04)),
    ((0.1, 0.42, 0.22), (0.97, 0.97, 0.95)),
    ((0.1, 0.25, 0.6), (0.97, 0.97, 0.95)),
    ((0.72, 0.1, 0.1), (0.98, 0.96, 0.92)),
    ((0.1, 0.1, 0.12), (0.97, 0.93, 0.75)),
    ((0.42, 0.28, 0.17), (0.97, 0.92, 0.8)),
    ((0.82, 0.7, 0.5), (0.2, 0.1, 0.05)),
    ((0.75, 0.78, 0.8), (0.1, 0.12, 0.15)),
)
_SCALE = 2  # signs are drawn this much larger, then turned and shrunk in one step


@dataclass(frozen=True, eq=False)
class Printed:
    """A drawn sign.

    Attributes:
        layer: The sign.
        texts: What stands on it, top to bottom and left to right.
        quads: For each text, float (4, 2): the corners of its ink, clockwise from its top left, in layer pixels.
    """

    layer: Layer
    texts: tuple[str, ...]
    quads: tuple[Points, ...]


@lru_cache(maxsize=1024)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels.

    Raises:
        RuntimeError: Matplotlib, which ships the fonts, is not installed.
    """
    found = find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the drawn world takes its fonts from matplotlib, which must be installed but is not")
    path = Path(next(iter(found.submodule_search_locations))) / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def print_sign(lines: list[list[str]], height: float, rng: np.random.Generator, limit: float = 1e9) -> Printed:
    """Draw a sign.

    Args:
        lines: The words of each line.
        height: Font size in pixels; made smaller where the sign would be wider than `limit`.
        rng: Decides font, colours, board and a turn of up to 12 degrees.
        limit: Largest width of the sign in pixels.

    Raises:
        ValueError: A word is empty, or there is none.
    """
    if not lines or not all(lines) or not all(word.strip() for line in lines for word in line):
        raise ValueError(f"lines must hold at least one word each but are {lines!r}")
    name = FONTS[int(rng.integers(len(FONTS)))]
    if not name.startswith("DejaVu"):
        height *= 1.15  # their letters are smaller at the same nominal size
    board, ink = _SCHEMES[int(rng.integers(len(_SCHEMES)))]
    pad, gap = rng.uniform(0.35, 0.75), rng.uniform(0.25, 0.5)
    turn = rng.uniform(-12, 12) if rng.random() < 0.8 else 0.0
    corner, frame = rng.uniform(0, 0.5), rng.random()
    post, oval = rng.random() < 0.25, rng.random() < 0.12 and len(lines) == 1
    face = font(name, _font_size(height))
    words, width, depth = _typeset(lines, face, gap)
    full = (width / face.size + 2 * pad) * height * (1.3 if oval else 1.0)
    if full > limit:
        height *= limit / full
        face = font(name, _font_size(height))
        words, width, depth = _typeset(lines, face, gap)
    margin = pad * height * _SCALE
    sides = (width + 2 * margin, depth + 2 * margin)
    if oval:
        sides = (sides[0] * 1.3, sides[1] * 1.45)
    flat = _board(sides, corner * height * _SCALE, frame, post, oval, (board, ink), height * _SCALE)
    shift = ((sides[0] - width) / 2 + 2, (sides[1] - depth) / 2 + 2)
    text = Image.new("L", (flat.shape[1], flat.shape[0]))
    quads: list[Points] = []
    for one in words:
        x, y = round(one.x + shift[0]), round(one.y + shift[1])
        text.paste(one.ink, (x, y))
        quads.append(rounded(x, y, x + one.ink.width, y + one.ink.height))
    inked = np.asarray(text)
    np.copyto(flat, look_up(inked, ramp(board, ink, 256)), where=inked[:, :, None] > 0)
    layer, matrix = _turned(flat, turn)
    # Whole 1/64 pixels: the last bits of a matrix product differ between processors.
    placed = tuple(np.rint((quad @ matrix[:, :2].T + matrix[:, 2]) * 64) / 64 for quad in quads)
    return Printed(layer, tuple(one.word for one in words), placed)


def _font_size(height: float) -> int:
    # Steps of 4, so that a few hundred fonts serve all signs.
    return max(8, 4 * int(height * _SCALE / 4 + 0.5))


@dataclass(frozen=True)
class _Set:
    """A word in its place: where its ink starts, and the ink."""

    word: str
    x: float
    y: float
    ink: Image.Image


def _typeset(lines: list[list[str]], face: ImageFont.FreeTypeFont, gap: float) -> tuple[list[_Set], float, float]:
    """Centre the lines below each other.

    Returns:
        The words, and the width and height of the whole.
    """
    space = face.size * 0.45
    rows = [[(word, *_ink(word, face)) for word in line] for line in lines]
    widths = [sum(ink.width for _, ink, _ in row) + space * (len(row) - 1) for row in rows]
    words: list[_Set] = []
    y = 0.0
    for row, row_width in zip(rows, widths, strict=True):
        x, highest = (max(widths) - row_width) / 2, min(top for _, _, top in row)
        for word, ink, top in row:
            words.append(_Set(word, x, y + top - highest, ink))
            x += ink.width + space
        y += max(top + ink.height for _, ink, top in row) - highest + gap * face.size
    return words, max(widths), y - gap * face.size


def _ink(word: str, face: ImageFont.FreeTypeFont) -> tuple[Image.Image, int]:
    """The word, mode L, cut to its ink, and how far below the baseline its top is (negative: above)."""
    left, top, right, bottom = (int(side) for side in face.getbbox(word, anchor="ls"))
    sheet = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(sheet).text((2 - left, 2 - top), word, fill=255, font=face, anchor="ls")
    box = sheet.getbbox()
    if box is None:
        raise ValueError(f"words must have something to print but {word!r} has not")
    return sheet.crop(box), top - 2 + box[1]


def _board(
    sides: tuple[float, float],
    radius: float,
    frame: float,
    post: bool,
    oval: bool,
    colours: tuple[RGB, RGB],
    size: float,
) -> Pixels:
    """The empty sign, uint8 RGBA; `frame` < 0.45 gives it a line along its edge, `post` a pole below it."""
    width, depth = sides
    pole = size * 0.9 if post else 0.0
    canvas = Canvas(int(np.ceil(width)) + 4, int(np.ceil(depth + pole)) + 4, 1)
    if post:
        middle, half = width / 2 + 2, size * 0.13
        canvas.fill(rounded(middle - half, depth, middle + half, depth + pole + 2), 3)
    edge = size * 0.08
    for index, inset in ((2, 0.0), (1, edge)) if frame < 0.45 else ((4, 0.0), (1, edge / 2)):
        if oval:
            outline = ellipse(width / 2 + 2, depth / 2 + 2, width / 2 - inset, depth / 2 - inset, n=48)
        else:
            outline = rounded(2 + inset, 2 + inset, width + 2 - inset, depth + 2 - inset, max(0.0, radius - inset))
        canvas.fill(outline, index)
    board, ink = colours
    return look_up(
        canvas.index, palette({1: board, 2: ink, 3: (0.35, 0.35, 0.37), 4: mix(board, (0.0, 0.0, 0.0), 0.3)})
    )


def _turned(flat: Pixels, degrees: float) -> tuple[Layer, Matrix]:
    """Turn an RGBA image clockwise and shrink it by `_SCALE`.

    Returns:
        The layer, and the 2 × 3 matrix from pixels of `flat` to pixels of the layer.
    """
    depth, width = flat.shape[:2]
    angle = np.radians(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / _SCALE
    corners = np.array([(0, 0), (width, 0), (width, depth), (0, depth)], np.float64) @ linear.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    matrix = np.concatenate([linear, -low[:, None]], axis=1)
    size = (int(np.ceil(high[0] - low[0])), int(np.ceil(high[1] - low[1])))
    return Layer(Warp(matrix, (width, depth), size)(flat, continued=False)), matrix
