"""Yahoo's Open-NSFW classifier (Mahadeokar and Pesavento 2016) with ONNX Runtime.

A thin ResNet-50 that knows pornography, not violence or drawings. Its input is what ``classify_nsfw.py`` of its authors
makes of an image (https://github.com/yahoo/open_nsfw).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from labelmill.operators.engines import onnx
from labelmill.operators.models import weights
from labelmill.operators.models.card import Dtype, ModelCard, ModelError

ARCHITECTURE = "OpenNSFW"
RESIZED, SIZE = 256, 224
MEAN = np.array([104, 117, 123], dtype=np.float32)
"""Of blue, green and red."""


class _Nothing(BaseModel):
    """A section of a card in which there is nothing to set."""

    model_config = ConfigDict(extra="forbid")


def check(card: ModelCard, dtype: Dtype = "auto") -> None:
    """Refuse a card or an arithmetic that cannot work; loads nothing.

    Raises:
        ModelError: The architecture is another, a section is not empty, or the arithmetic is not float32.
    """
    if card.architecture != ARCHITECTURE:
        raise ModelError(
            f"model card {card.name}: architecture must be {ARCHITECTURE} for moderation with engine onnxruntime but "
            f"is {card.architecture}"
        )
    card.section("config", _Nothing)
    card.section("preprocess", _Nothing)
    if card.weights.random is not None:
        raise ModelError(f"model card {card.name}: weights must be an .onnx file but are random")
    for asked, param in ((dtype, "dtype"), (card.dtype, "model")):
        if asked not in ("auto", "float32"):
            raise ModelError(f"dtype must be auto or float32 with engine onnxruntime but is {asked}", (param,))


def ready() -> None:
    """Refuse to start without the library.

    Raises:
        ModelError: It is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise ModelError(
            "engine onnxruntime needs the package onnxruntime, which is not installed; run `pip install onnxruntime`"
        )


class OpenNsfw:
    """The classifier, on the CPU in one thread.

    Args:
        card: A card that `check` accepts.

    Raises:
        ModelError: The weights are missing, corrupt or of another model, or the library is not installed.
    """

    def __init__(self, card: ModelCard) -> None:
        check(card)
        ready()
        weights.verify(card)
        self._session = _session(card, weights.files(card)[0])
        self._input = self._session.get_inputs()[0].name

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Squash, compress as JPEG and crop, as the authors did with what the model learned from.

        Returns:
            uint8, (224, 224, 3), blue first.
        """
        from PIL import Image

        file = BytesIO()
        Image.fromarray(pixels).resize((RESIZED, RESIZED), Image.Resampling.BILINEAR).save(file, "JPEG")
        edge = (RESIZED - SIZE) // 2
        with Image.open(file) as squashed:
            return np.asarray(squashed)[edge : edge + SIZE, edge : edge + SIZE, ::-1]

    def score(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """How probable it is that prepared images are not safe for work.

        Returns:
            float32, (n,), 0…1.
        """
        safe_and_not: np.ndarray = self._session.run(None, {self._input: np.stack(items) - MEAN})[0]
        return safe_and_not[:, 1]


def _session(card: ModelCard, path: Path) -> Any:
    """The file, opened.

    Raises:
        ModelError: It is corrupt, or another model.
    """
    session = onnx.session(card, path)
    shapes = [[node.shape[1:] for node in nodes] for nodes in (session.get_inputs(), session.get_outputs())]
    if shapes != [[[SIZE, SIZE, 3]], [[2]]]:
        raise ModelError(
            f"weights of card {card.name} must take images of {[SIZE, SIZE, 3]} and give [2] numbers but {path} takes "
            f"{shapes[0]} and gives {shapes[1]}"
        )
    return session


def make(card: ModelCard) -> OpenNsfw:
    """The card's model, loaded; see `OpenNsfw`."""
    return OpenNsfw(card)
