"""Who gives `verify` its opinions: a model that names crops, one that answers questions, and another detector."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.detections.boxes import iou
from labelmill.operators.detections.crops import box_array, crop
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.engines.embedding.encoder import class_texts
from labelmill.operators.engines.image_text_to_text import answerer
from labelmill.operators.engines.image_text_to_text.answerer import Reply
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.operators.ontology import Ontology

MARGIN = 0.05
"""Shown around a box when it is named, as a share of its longer side: more, and neighbours would be named."""

CONTEXT = 0.5
"""Shown around a box when a question is asked about it: models that answer questions have learned from whole scenes."""

YES, NO = "yes", "no"
MAX_TOKENS = 8


def overlaps(
    boxes: NDArray[np.float64], classes: Sequence[str | None], others: Sequence[Mapping[str, Any]]
) -> NDArray[np.float64]:
    """The best IoU of each box (n, 4) with the others of its class, (n,); 0 if there are none."""
    there = box_array(others)
    with np.errstate(invalid="ignore"):
        fit = np.isfinite(there).all(axis=1) & (there[:, 2:] > there[:, :2]).all(axis=1)
    there = there[fit]
    names = np.array([each["class"] for each in others], dtype=object)[fit]
    if not len(boxes) or not len(there):
        return np.zeros(len(boxes))
    same = np.array(classes, dtype=object)[:, None] == names[None]
    found: NDArray[np.float64] = (iou(boxes, there) * same).max(axis=1)
    return found


class Namer:
    """Tells how probable each class is of what a box shows.

    Args:
        card: A model for embedding that reads texts.
        ontology: The classes and their prompts.
        templates: Sentences with {} for a prompt.
        dtype: Arithmetic of the image side.

    Raises:
        ModelError: The weights are missing, corrupt or of another model.
    """

    def __init__(self, card: ModelCard, ontology: Ontology, templates: tuple[str, ...], dtype: Dtype) -> None:
        self._texts = encoder.text_encoder(card)
        self._vectors = encoder.class_vectors(self._texts, class_texts(ontology, templates))
        self._images = encoder.image_encoder(card, dtype)

    def prepare(self, pixels: np.ndarray, box: Sequence[float]) -> Any:
        """The model's input for a box of an image; pure, called in threads."""
        return self._images.prepare(crop(pixels, box, MARGIN, square=True))

    def probabilities(self, crops: Sequence[Any], chunk: int) -> NDArray[np.float32]:
        """What `classify` would say of each crop, (n, classes), `chunk` of them at a time."""
        parts = [np.zeros((0, len(self._vectors)), np.float32)]
        for some in _chunks(crops, chunk):
            parts.append(self._texts.probabilities(self._images.encode(some) @ self._vectors.T))
        return np.concatenate(parts)


class Questioner:
    """Asks a vision-language model about boxes.

    Args:
        card: The model.
        ontology: The classes; the first prompt of each is asked for.
        question: With {} for that prompt; to be answered with yes or no.
        dtype: Arithmetic.

    Raises:
        ModelError: The weights are missing, corrupt or of another model, or an endpoint's key is not set.
        OperatorError: A question cannot be asked.
    """

    def __init__(self, card: ModelCard, ontology: Ontology, question: str, dtype: Dtype) -> None:
        self._questions = questions(ontology, question)
        self.engine = answerer.answerer(card, dtype)
        for name in self._questions:
            self._pose(name)

    def _pose(self, name: str) -> None:
        self.engine.ask(self._questions[name], (YES, NO), MAX_TOKENS)

    def ask(self, about: Sequence[tuple[str, np.ndarray, Sequence[float]]], chunk: int) -> list[float | RowError]:
        """The probability of yes, or why there is no answer.

        Args:
            about: A class, the image's uint8 RGB pixels (height, width, 3), and a box in it.
            chunk: How many to ask at a time.
        """
        answers: dict[int, float | RowError] = {}
        of_class: dict[str, list[int]] = {}
        for number, (name, _, _) in enumerate(about):
            of_class.setdefault(name, []).append(number)
        for name in sorted(of_class):
            self._pose(name)
            for some in _chunks(of_class[name], chunk):
                given = [self.engine.prepare(_picture(*about[number][1:])) for number in some]
                answers.update(zip(some, map(_yes, self._replies(given)), strict=True))
        return [answers[number] for number in range(len(about))]

    def _replies(self, given: Sequence[Any]) -> list[Reply]:
        """Replies in the order of the items; those of one bucket are asked for together."""
        buckets: dict[Hashable, list[int]] = {}
        for number, item in enumerate(given):
            buckets.setdefault(self.engine.bucket(item), []).append(number)
        replies: dict[int, Reply] = {}
        for members in buckets.values():
            replies.update(zip(members, self.engine.answer([given[number] for number in members]), strict=True))
        return [replies[number] for number in range(len(given))]


def questions(ontology: Ontology, question: str) -> dict[str, str]:
    """What is asked about a detection of each class."""
    return {name: question.replace("{}", prompts[0]) for name, prompts in ontology.root.items()}


def _picture(pixels: np.ndarray, box: Sequence[float]) -> DecodedImage:
    """A box and what is around it. There is no file, so its format is none that anybody sends on as it is."""
    return DecodedImage(crop(pixels, box, CONTEXT), b"", "", "RGB", 1, 1)


def _yes(reply: Reply) -> float | RowError:
    error = reply.error()
    if error is not None:
        return error
    sure = 1.0 if reply.probability is None else reply.probability
    return sure if reply.answer == YES else 1 - sure


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
