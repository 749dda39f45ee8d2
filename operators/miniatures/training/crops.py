"""Cutting a piece out of a scene, and mirroring it, with its truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labelmill.operators.miniatures.canvas import mask_box
from labelmill.operators.miniatures.training.scenes import Drawn

LEAST_LEFT = 0.75
"""Share of a thing's visible pixels that must be inside a piece, unless all of it is outside."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of a scene.

    Attributes:
        pixels: uint8 (h, w, 3).
        labels: uint8 (h, w), as in `Drawn`.
        numbers: Numbers of the scene's things that are in it.
        parts: Numbers of the scene's things that show in it, but too little of them.
        boxes: float32 (things, 4): xyxy in pixels of the piece, of what is visible in it.
    """

    pixels: np.ndarray
    labels: np.ndarray
    numbers: list[int]
    boxes: np.ndarray
    parts: tuple[int, ...] = ()


def cut(scene: Drawn, width: int, height: int, rng: np.random.Generator, mirror: bool = True) -> Piece:
    """Cut a piece of that size where no thing loses much of itself; if there is no such place, anywhere.

    Things that lose more are the piece's parts. Half of the pieces are mirrored.
    """
    high, wide = scene.labels.shape
    counts = np.bincount(scene.labels.ravel(), minlength=len(scene.things) + 1)[1:]
    for _ in range(6):
        x, y = int(rng.integers(wide - width + 1)), int(rng.integers(high - height + 1))
        labels = np.asarray(scene.labels[y : y + height, x : x + width])
        inside = np.bincount(labels.ravel(), minlength=len(scene.things) + 1)[1:]
        if np.all((inside == 0) | (inside >= LEAST_LEFT * counts)):
            break
    pixels = np.asarray(scene.pixels[y : y + height, x : x + width])
    if mirror and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    enough = inside >= LEAST_LEFT * counts
    numbers = [int(n) for n in np.flatnonzero((inside > 0) & enough)]
    parts = tuple(int(n) for n in np.flatnonzero((inside > 0) & ~enough))
    boxes = np.array([mask_box(labels == number + 1) for number in numbers], np.float32).reshape(-1, 4)
    return Piece(pixels, labels, numbers, boxes, parts)
