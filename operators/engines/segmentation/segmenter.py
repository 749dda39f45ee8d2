"""What `segment` needs of an engine, and which engine a card is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from labelmill.operators.engines.registry import engine
from labelmill.operators.engines.segmentation.masks import Mask
from labelmill.operators.models.card import Dtype, ModelCard, ModelError


class Segmenter(Protocol):
    """A promptable segmentation model with its weights loaded."""

    def prepare(self, pixels: np.ndarray) -> Any:
        """Turn uint8 RGB pixels (height, width, 3) into the image encoder's input; pure, called in threads.

        Raises:
            RowError: The model cannot see this image.
        """
        ...

    def encode(self, items: Sequence[Any]) -> Sequence[Any]:
        """Embed prepared images, of any sizes: one embedding for each, to be decoded as often as one likes."""
        ...

    def decode(self, embedded: Any, boxes: np.ndarray, height: int, width: int, chunk: int) -> list[Mask | None]:
        """The mask of what each box is around.

        Args:
            embedded: What `encode` gave for the image.
            boxes: float32 (n, 4), xyxy in pixels of the image; n may be 0.
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            chunk: Boxes per call of the mask decoder.

        Returns:
            n of them; None where the model's logits are not finite.
        """
        ...

    def decode_points(
        self, embedded: Any, points: np.ndarray, height: int, width: int, chunk: int, floor: float
    ) -> list[Mask | None]:
        """The masks of everything that each point could mean.

        Args:
            embedded: What `encode` gave for the image.
            points: float32 (n, 2), xy in pixels of the image; n may be 0.
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            chunk: Points per call of the mask decoder.
            floor: Masks whose predicted IoU is not above this are left out.

        Returns:
            The masks above the floor, point by point; None for one whose logits are not finite.
        """
        ...

    def decode_labelled(
        self, embedded: Any, points: np.ndarray, labels: np.ndarray, height: int, width: int
    ) -> list[Mask | None]:
        """The masks of what several points together could mean.

        Args:
            embedded: What `encode` gave for the image.
            points: float32 (k, 2), xy in pixels of the image, k ≥ 1.
            labels: int (k,): 1 for a point on the object, 0 for one beside it.
            height: Of the image, in pixels.
            width: Of the image, in pixels.

        Returns:
            All of them; None for one whose logits are not finite.
        """
        ...


def check(card: ModelCard, points: bool = False) -> None:
    """Refuse a card that its engine cannot build, without loading anything.

    Args:
        card: A card for segmentation.
        points: Whether it must take points, not only boxes.

    Raises:
        ModelError: The architecture is unknown, or a section has an unknown key or values that do not fit together.
    """
    built_by = engine(card)
    built_by.check(card)
    if points and built_by.masks_of_point(card) < 1:
        raise ModelError(
            f"model card {card.name} must take points but knows boxes only (num_multimask_outputs is 0); "
            f"segment from detections, or use a card such as sam-vit-b"
        )


def load(card: ModelCard, dtype: Dtype = "auto") -> Segmenter:
    """The engine of a card, with its weights loaded.

    Raises:
        ModelError: The card cannot be built, or the weights are missing, corrupt or of another model.
    """
    made: Segmenter = engine(card).make(card, dtype)
    return made
