"""What `ask` needs of an engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says about one image.

    Attributes:
        answer: A text, or one of the choices.
        probability: Of that choice among the choices, 0…1; None without choices.
        finite: Whether the model's scores were; if not, the rest means nothing.
    """

    answer: str
    probability: float | None = None
    finite: bool = True


class Answerer(Protocol):
    """A model that reads an image and a prompt, with its weights loaded."""

    def ask(self, prompt: str, choices: Sequence[str] | None, max_tokens: int) -> None:
        """Fix what to ask.

        Args:
            prompt: A question or an instruction.
            choices: Answers to choose from; None for any.
            max_tokens: An answer is cut off after so many.

        Raises:
            OperatorError: It cannot be asked.
        """
        ...

    def prepare(self, pixels: Any) -> Any:
        """Turn uint8 RGB pixels (height, width, 3) into the model's input; pure, called in threads.

        Raises:
            RowError: The model cannot see this image.
        """
        ...

    def bucket(self, item: Any) -> Hashable:
        """Items of different buckets never share a batch."""
        ...

    def answer(self, items: Sequence[Any]) -> list[Reply]:
        """A reply to each item, in order."""
        ...
