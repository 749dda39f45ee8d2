"""What `moderate` needs of an engine, and the one that asks any model for embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from labelmill.operators.engines.embedding import encoder
from labelmill.operators.models.card import Dtype, ModelCard


class Moderator(Protocol):
    """A model that judges images, with its weights loaded."""

    def prepare(self, pixels: np.ndarray) -> Any:
        """Turn upright pixels, uint8 RGB (height, width, 3), into the model's input; pure, called in threads."""
        ...

    def score(self, items: Sequence[Any]) -> np.ndarray:
        """How probable it is that prepared images are not safe for work.

        Returns:
            float32, (n,), 0…1.
        """
        ...


class ZeroShot:
    """Compares an image with prompts (Radford et al. 2021, CLIP, section 3.1).

    Args:
        card: A card for embedding whose model reads text.
        dtype: Arithmetic of the image side.
        nsfw: Prompts of the class whose probability is the score.
        safe: Prompts of the other class.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
        OperatorError: A prompt is longer than the model reads.
    """

    def __init__(self, card: ModelCard, dtype: Dtype, nsfw: Sequence[str], safe: Sequence[str]) -> None:
        texts = encoder.text_encoder(card)
        self._probabilities = texts.probabilities
        self._classes = encoder.class_vectors(texts, [nsfw, safe])
        self._images = encoder.image_encoder(card, dtype)

    def prepare(self, pixels: np.ndarray) -> Any:
        """Turn upright pixels, uint8 RGB (height, width, 3), into the model's input."""
        return self._images.prepare(pixels)

    def score(self, items: Sequence[Any]) -> np.ndarray:
        """The probability of the class `nsfw`.

        Returns:
            float32, (n,), 0…1.
        """
        return self._probabilities(self._images.encode(items) @ self._classes.T)[:, 0]
