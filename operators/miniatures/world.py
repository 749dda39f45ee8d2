"""The drawn world: scenes with exact truth, each a pure function of a seed and an index.

Start here. `World(seed).scene(index)` gives the same scene on any machine with the same versions of NumPy, OpenCV and
Pillow, in any process and in any order. Single things for training come from `draw_object`, `draw_word` and
`draw_face`; copies from `operators.miniatures.duplicates`; bad images from `operators.miniatures.defects`; a dataset on
disk from `operators.miniatures.write`.

Coordinates are pixels, origin at the top left corner of the image, x right, y down; boxes are xyxy in pixel edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labelmill.operators.miniatures.backgrounds import background, photograph
from labelmill.operators.miniatures.canvas import Layer, Mask, Pixels, Points, mask_box, mean_colour, overlap
from labelmill.operators.miniatures.captions import FACE, SIGN, Thing, caption, parse_caption
from labelmill.operators.miniatures.crops import draw_face, draw_object, draw_word
from labelmill.operators.miniatures.faces import draw_head
from labelmill.operators.miniatures.objects import HELD_OUT, STYLES, Drawn, colours, draw, kinds, pairs
from labelmill.operators.miniatures.signs import print_sign
from labelmill.operators.miniatures.words import WORDS, draw_text, held_out, vocabulary

__all__ = [
    "HELD_OUT", "STYLES", "WORDS", "Face", "Scene", "SceneObject", "Sign", "Word", "World", "caption", "colours",
    "draw_face", "draw_object", "draw_word", "held_out", "kinds", "pairs", "parse_caption", "vocabulary",
]  # fmt: skip

Box = tuple[float, float, float, float]

SMALLEST, LARGEST = 0.08, 0.45
"""Longer side of an object's visible extent, as a share of the image's shorter side."""
MOST_HIDDEN = 0.3
"""Largest share of an object's area that other things or the image's edge may hide."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object.

    Attributes:
        kind: One of `kinds()`.
        colour: One of `colours()`.
        box: Visible extent, xyxy.
        mask: bool (h, w) of the image: visible pixels.
        style: One of `STYLES`.
        hidden: Share of its area, 0…1, that is not visible.
    """

    kind: str
    colour: str
    box: Box
    mask: Mask
    style: str
    hidden: float


@dataclass(frozen=True, eq=False)
class Word:
    """One printed word or number.

    Attributes:
        text: As printed; case counts.
        quad: float (4, 2), corners of its ink clockwise from the top left of the text.
        box: Smallest upright box around `quad`, within the image.
        mirrored: Whether it stands in mirror writing (in flipped duplicates); `quad` then starts at the top right.
    """

    text: str
    quad: Points
    box: Box
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class Face:
    """One face. Its box is the extent of head and hair.

    Attributes:
        yaw: Horizontal gaze in degrees; > 0 looks to the left edge of the image.
        pitch: Vertical gaze in degrees; > 0 looks up. Both as in L2CS-Net and Gaze360.
    """

    box: Box
    mask: Mask
    yaw: float
    pitch: float


@dataclass(frozen=True, eq=False)
class Sign:
    """One sign: the board that words stand on."""

    box: Box
    mask: Mask


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and everything that is true about it.

    Attributes:
        pixels: uint8 (h, w, 3), RGB.
        objects, words, faces, signs: What is in it. No pixel belongs to two masks.
    """

    pixels: Pixels
    objects: tuple[SceneObject, ...]
    words: tuple[Word, ...]
    faces: tuple[Face, ...]
    signs: tuple[Sign, ...]

    @property
    def things(self) -> tuple[Thing, ...]:
        """(colour, kind) of everything that the caption names."""
        found: list[Thing] = [(thing.colour, thing.kind) for thing in self.objects]
        return (*found, *((None, FACE) for _ in self.faces), *((None, SIGN) for _ in self.signs))

    @property
    def caption(self) -> str:
        """What is there: ``a red car, two blue cups and a face``."""
        return caption(self.things)


class World:
    """An endless series of scenes.

    Args:
        seed: Which world, ≥ 0.
        size: Side, or width and height, of its images in pixels; at least 128.
        pairs: Which (kind, colour) pairs appear: ``seen``, ``held_out`` or ``all``.
        words: Which words and numbers appear: ``seen``, ``held_out`` or ``all``.

    Raises:
        ValueError: An argument is outside its range.
    """

    def __init__(self, seed: int, size: int | tuple[int, int] = 320, *, pairs: str = "all", words: str = "all") -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more but is {seed}")
        self.seed = seed
        self.width, self.height = (size, size) if isinstance(size, int) else size
        if min(self.width, self.height) < 128:
            raise ValueError(f"size must be at least 128 pixels on both sides but is {self.width} x {self.height}")
        self.pairs = _pairs(pairs)
        vocabulary(words)
        self.words = words

    def scene(self, index: int) -> Scene:
        """The scene with that number.

        Raises:
            ValueError: `index` is negative.
        """
        if index < 0:
            raise ValueError(f"index must be 0 or more but is {index}")
        rng = np.random.default_rng([self.seed, index])
        stage = _Stage(background(self.width, self.height, rng), rng)
        side = min(self.width, self.height)
        objects, faces, signs = (_count(odds, rng) for odds in (_OBJECTS, _FACES, _SIGNS))
        for _ in range(faces):
            stage.add_face(side * rng.uniform(0.22, 0.38))
        for _ in range(signs):
            stage.add_sign(self._lines(rng), max(14.0, side * rng.uniform(0.05, 0.1)), self.width * 0.62)
        for _ in range(objects):
            stage.add_object(*self.pairs[int(rng.integers(len(self.pairs)))], side)
        return stage.scene()

    def _lines(self, rng: np.random.Generator) -> list[list[str]]:
        layout = rng.random()
        words = [draw_text(rng, self.words) for _ in range(1 if layout < 0.6 else 2)]
        return [[word] for word in words] if layout < 0.85 else [words]


_pairs = pairs
# Odds of 0, 1, 2 … of each.
_OBJECTS, _FACES, _SIGNS = (0.02, 0.2, 0.26, 0.26, 0.16, 0.1), (0.62, 0.3, 0.08), (0.5, 0.38, 0.12)


def _count(odds: tuple[float, ...], rng: np.random.Generator) -> int:
    return int(np.searchsorted(np.cumsum(odds[:-1]), rng.random(), side="right"))


class _Stage:
    """Fills a scene from front to back, so that what was placed stays as visible as it was."""

    def __init__(self, pixels: Pixels, rng: np.random.Generator) -> None:
        self.pixels, self.rng = pixels, rng
        self.taken: Mask = np.zeros(pixels.shape[:2], np.bool_)
        self.layers: list[tuple[Layer, int, int]] = []
        self.objects: list[SceneObject] = []
        self.words: list[Word] = []
        self.faces: list[Face] = []
        self.signs: list[Sign] = []

    def add_face(self, size: float) -> None:
        """A face with nothing in front of it; none if there is no room."""
        face = draw_head(size, self.rng)
        if (spot := self._spot(face.layer.mask, 0.0)) is not None:
            mask = self._take(face.layer.mask, *spot)
            self.layers.append((face.layer, *spot))
            self.faces.append(Face(_box(mask), mask, face.yaw, face.pitch))

    def add_sign(self, lines: list[list[str]], height: float, limit: float) -> None:
        """A sign with nothing in front of it; none if there is no room."""
        sign = print_sign(lines, height, self.rng, limit)
        if (spot := self._spot(sign.layer.mask, 0.0)) is None:
            return
        mask = self._take(sign.layer.mask, *spot)
        self.layers.append((sign.layer, *spot))
        self.signs.append(Sign(_box(mask), mask))
        for text, quad in zip(sign.texts, sign.quads, strict=True):
            placed = quad + np.array(spot, np.float64)
            self.words.append(Word(text, placed, quad_box(placed, *self.pixels.shape[1::-1])))

    def add_object(self, kind: str, colour: str, side: int) -> None:
        """An object behind what is there already; none if there is no room for it even when small."""
        share = SMALLEST + 0.02 + (LARGEST - SMALLEST - 0.03) * self.rng.beta(1.7, 1.6)
        for _ in range(3):
            drawn = draw(kind, colour, side * share, self.rng)
            if (spot := self._spot(drawn.mask, MOST_HIDDEN, side * SMALLEST)) is not None:
                self._paint(drawn, kind, *spot)
                return
            share = max(SMALLEST + 0.02, share * 0.7)

    def _paint(self, drawn: Drawn, kind: str, x: int, y: int) -> None:
        mask = self._take(drawn.mask, x, y)
        box = _box(mask)
        around = self.pixels[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])]
        self.layers.append((drawn.layer(self.rng, mean_colour(around)), x, y))
        hidden = 1 - np.count_nonzero(mask) / np.count_nonzero(drawn.mask)
        self.objects.append(SceneObject(kind, drawn.colour, box, mask, drawn.style, float(hidden)))

    def _spot(self, mask: Mask, most_hidden: float, shortest: float = 0.0) -> tuple[int, int] | None:
        """A place for the mask's top left corner where at most that share of it is hidden, or None."""
        height, width = mask.shape
        area = np.count_nonzero(mask)
        # Now and then an object may stick out of the image.
        out = 0.2 if most_hidden and self.rng.random() < 0.15 else 0.0
        low = np.array([-out * width, -out * height])
        room = np.array(self.taken.shape[::-1]) - np.array([width, height]) - 2 * low
        if (room < 0).any():
            return None
        for _ in range(16):
            x, y = (int(v) for v in np.floor(low + self.rng.random(2) * (room + 1)))
            visible = self._visible(mask, x, y)
            if np.count_nonzero(visible) < area * (1 - most_hidden):
                continue
            box = mask_box(visible)
            if box is not None and max(box[2] - box[0], box[3] - box[1]) >= shortest:
                return x, y
        return None

    def _visible(self, mask: Mask, x: int, y: int) -> Mask:
        rows, columns = overlap(y, mask.shape[0], self.taken.shape[0]), overlap(x, mask.shape[1], self.taken.shape[1])
        if rows is None or columns is None:
            return np.zeros((0, 0), np.bool_)
        return np.asarray(mask[rows[1], columns[1]] & ~self.taken[rows[0], columns[0]])

    def _take(self, mask: Mask, x: int, y: int) -> Mask:
        """Mark the visible part of the mask as taken; returns it on the size of the image."""
        whole = np.zeros_like(self.taken)
        visible = self._visible(mask, x, y)
        whole[max(y, 0) : max(y, 0) + visible.shape[0], max(x, 0) : max(x, 0) + visible.shape[1]] = visible
        self.taken |= whole
        return whole

    def scene(self) -> Scene:
        """Paint everything, back to front, and take the picture."""
        for layer, x, y in reversed(self.layers):
            layer.over(self.pixels, x, y)
        pixels = photograph(self.pixels, self.rng)
        return Scene(pixels, tuple(self.objects), tuple(self.words), tuple(self.faces), tuple(self.signs))


def quad_box(quad: Points, width: int, height: int) -> Box:
    """The smallest upright box around the corners, cut to the image."""
    (x1, y1), (x2, y2) = quad.min(axis=0), quad.max(axis=0)
    return max(0.0, float(x1)), max(0.0, float(y1)), min(float(width), float(x2)), min(float(height), float(y2))


def _box(mask: Mask) -> Box:
    box = mask_box(mask)
    assert box is not None, "what is placed is visible"
    return box
