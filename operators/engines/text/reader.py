"""What `read` needs of an engine, and which engine a card means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from labelmill.operators.engines.registry import engine
from labelmill.operators.models.card import Dtype, ModelCard

DETECTION = "text-detection"
RECOGNITION = "text-recognition"
OCR = "ocr"
"""Tasks of cards: find words, read words, or both."""


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """One word.

    Attributes:
        text: What it says.
        confidence: 0…1.
        quad: float32 (4, 2), its corners in pixels of the image, clockwise from the top left of the text.
        line: Number of its line.
    """

    text: str
    confidence: float
    quad: np.ndarray
    line: int


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image.

    Attributes:
        pixels: uint8 (h, w, 3), RGB: the image.
        given: What the engine's `prepare` made of it.
        boxes: float (n, 4), xyxy in pixels: only words whose centre lies inside one of them are read; None for all.
    """

    pixels: np.ndarray
    given: Any
    boxes: np.ndarray | None = None


class Reader(Protocol):
    """A model that finds and reads words, with its weights loaded."""

    def prepare(self, pixels: np.ndarray) -> Any:
        """Turn uint8 RGB pixels (height, width, 3) into the model's input; pure, called in threads."""
        ...

    def read(self, items: Sequence[Item]) -> list[list[Word] | None]:
        """The words of images, in the order of reading.

        Returns:
            For each image its words, line by line, or None where the model gave what is not a number.
        """
        ...


def inside(centres: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
    """Which points lie inside one of the boxes, or on its border.

    Args:
        centres: (n, 2), x and y.
        boxes: (m, 4), xyxy; None for a box around everything.

    Returns:
        bool (n,).
    """
    if boxes is None:
        return np.ones(len(centres), bool)
    points = centres[:, None]
    within: np.ndarray = np.all((points >= boxes[:, :2]) & (points <= boxes[:, 2:]), axis=2)
    return np.any(within, axis=1)


def check(model: ModelCard, recognition: ModelCard | None, dtype: Dtype) -> None:
    """Refuse cards that do not go together, or that their engine does not understand; loads nothing.

    Raises:
        ModelError: What must be, and what is.
    """
    engine(model).check_cards(model, recognition, dtype)


def build(model: ModelCard, recognition: ModelCard | None, dtype: Dtype) -> Reader:
    """The cards' model, with its weights loaded.

    Raises:
        ModelError: As `check`; or weights are missing, corrupt or of another model.
    """
    check(model, recognition, dtype)
    made: Reader = engine(model).make(model, recognition, dtype)
    return made
