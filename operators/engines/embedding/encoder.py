"""What `embed`, `classify` and `moderate` need of an engine, and which engine a card means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import AfterValidator

from labelmill.operators.engines.registry import engine, require
from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.operators.ontology import Ontology

EmbeddingCard = Annotated[ModelCard, AfterValidator(require("embedding"))]
"""A card that `embed` can use, and if its model reads text, `classify` and `moderate` too."""


class ImageEncoder(Protocol):
    """The image side of a model, with its weights loaded."""

    def prepare(self, pixels: np.ndarray) -> Any:
        """Turn upright pixels, uint8 RGB (height, width, 3), into the model's input; pure, called in threads."""
        ...

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Vectors of prepared images.

        Returns:
            float32, (n, dimensions), L2-normalised.
        """
        ...


class TextEncoder(Protocol):
    """The text side of a model, with its weights loaded."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts.

        Returns:
            float32, (n, dimensions), L2-normalised.

        Raises:
            OperatorError: A text is longer than the model reads.
        """
        ...

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """What the model was trained to make of cosines.

        Args:
            cosines: float32, (n, k): of n images with k texts or means of texts.

        Returns:
            float32, (n, k): which of the texts fits, summing to 1 over them, or whether each of them fits.
        """
        ...


def check(card: ModelCard, text: bool = False) -> None:
    """Refuse a card that cannot work; loads nothing.

    Args:
        card: A card for embedding.
        text: Whether its text side is needed too.

    Raises:
        ModelError: Its architecture or a section does not fit, or it has no text side that could be used.
    """
    built_by = engine(card)
    built_by.check(card)
    if text:
        built_by.check_text(card)


def dimensions(card: ModelCard) -> int:
    """Length of the model's vectors; loads nothing."""
    length: int = engine(card).dimensions(card)
    return length


def image_encoder(card: ModelCard, dtype: Dtype = "auto") -> ImageEncoder:
    """The image side of the card's model.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """
    encoder: ImageEncoder = engine(card).image_encoder(card, dtype)
    return encoder


def text_encoder(card: ModelCard) -> TextEncoder:
    """The text side of the card's model, in float32.

    Raises:
        ModelError: It has none, or its weights or tokenizer are missing, corrupt or of another model.
    """
    encoder: TextEncoder = engine(card).text_encoder(card)
    return encoder


def class_vectors(encoder: TextEncoder, classes: Sequence[Sequence[str]]) -> np.ndarray:
    """A vector for each class: the mean of the vectors of its texts (Radford et al. 2021, CLIP, section 3.1.4).

    Args:
        encoder: The text side.
        classes: The texts of each class, at least one.

    Returns:
        float32, (classes, dimensions), L2-normalised.
    """
    vectors = encoder.encode([text for texts in classes for text in texts])
    means = np.stack(
        [part.mean(axis=0) for part in np.split(vectors, np.cumsum([len(texts) for texts in classes])[:-1])]
    )
    normalised: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return normalised


def _has_slot(template: str) -> str:
    if "{}" not in template:
        raise ValueError(f"must contain {{}} where the prompt goes but is {template!r}")
    return template


Template = Annotated[str, AfterValidator(_has_slot)]


def class_texts(ontology: Ontology, templates: tuple[str, ...]) -> list[list[str]]:
    """For each class, in order, its prompts in all templates."""
    return [
        [template.replace("{}", prompt) for prompt in prompts for template in templates]
        for prompts in ontology.root.values()
    ]
