"""What `detect` needs of an engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from labelmill.operators.errors import OperatorError
from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.operators.ontology import Ontology


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
    """An open-vocabulary detector with its weights loaded.

    Attributes:
        architectures: What a card's `architecture` may be.
        extra: The optional dependency that the engine needs, by the name of its module and of labelmill's extra.
    """

    architectures: ClassVar[Collection[str]]
    extra: ClassVar[str | None]

    def __init__(self, card: ModelCard, dtype: Dtype) -> None:
        """Load a card of one of the architectures.

        Raises:
            ModelError: The weights are missing, corrupt or of another model.
        """
        ...

    @staticmethod
    def check(card: ModelCard, ontology: Ontology) -> None:
        """Refuse a card or prompts that cannot work, without loading anything.

        Raises:
            ModelError: The card's sections.
            OperatorError: The prompts.
        """
        ...

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


@dataclass(frozen=True, slots=True)
class Phrase:
    """A prompt as the model is asked.

    Attributes:
        prompt: As the ontology has it.
        name: The canonical class.
        text: As the model reads it.
    """

    prompt: str
    name: str
    text: str


def phrases(ontology: Ontology, clean: Callable[[str], str], dropped: str) -> list[Phrase]:
    """The phrases that ask for an ontology, each once, sorted by text: the order of its classes changes nothing.

    Args:
        ontology: What to look for.
        clean: From a prompt to the text that the model reads.
        dropped: What `clean` leaves out, in words.

    Raises:
        OperatorError: Nothing is left of a prompt, or one phrase would ask for two classes.
    """
    asked: dict[str, Phrase] = {}
    for prompt, name in ontology.prompts():
        phrase = Phrase(prompt, name, clean(prompt))
        if not phrase.text:
            raise OperatorError(f"prompt {prompt!r} must have more than {dropped}", ("ontology", name))
        refuse_collision(asked.setdefault(phrase.text, phrase), phrase, dropped)
    return [asked[text] for text in sorted(asked)]


def refuse_collision(one: Phrase, other: Phrase, dropped: str) -> None:
    """Say that two phrases, which the model cannot tell apart, ask for different classes.

    Raises:
        OperatorError: Unless both are of one class.
    """
    if one.name != other.name:
        raise OperatorError(
            f"prompts {one.prompt!r} of {one.name!r} and {other.prompt!r} of {other.name!r} must differ in more than "
            f"case, accents, {dropped}: the model is asked {other.text!r} for both",
            ("ontology", other.name),
        )
