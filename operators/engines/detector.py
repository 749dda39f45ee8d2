"""What `detect` needs of an engine."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from operators.ontology import Ontology


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores and boxes for some of the prompts, of a batch of n images with q candidate objects each.

    Attributes:
        prompts: int (p,): which prompts, as indices into what `ask` gave.
        scores: float32 (n, q, p): how well each candidate fits each prompt, 0…1.
        boxes: float32 (n, q, 4): xyxy as fractions of the image's width and height; may stick out of 0…1.
    """

    prompts: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


class Detector(Protocol):
    """An open-vocabulary detector with its weights loaded."""

    def ask(self, ontology: Ontology) -> list[tuple[str, str]]:
        """Fix what to look for.

        Returns:
            Each prompt that is asked and its canonical class.

        Raises:
            OperatorError: A prompt cannot be asked.
        """
        ...

    def prepare(self, pixels: np.ndarray) -> Any:
        """Turn uint8 RGB pixels (height, width, 3) into the model's input; pure, called in threads.

        Raises:
            RowError: The model cannot see this image.
        """
        ...

    def bucket(self, item: Any) -> Hashable:
        """Items of different buckets never share a batch."""
        ...

    def detect(self, items: Sequence[Any]) -> Iterator[Answer]:
        """Look for everything that was asked, in as many answers as the engine likes, each prompt in exactly one."""
        ...
