"""What `ask` needs of an engine, and which engine a card means."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from labelmill.operators.engines.registry import engine
from labelmill.operators.errors import RowError
from labelmill.operators.models.card import Dtype, ModelCard

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

NOT_FINITE = "the model gave scores that are not finite; try dtype: float32 or bfloat16"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says about one image.

    Attributes:
        answer: A text, one of the choices, or JSON.
        probability: Of that choice among the choices, 0…1; None without choices, or where the engine cannot know.
        problem: Why there is no answer; if it is not empty, the rest means nothing.
        cause: The exception behind it, where there is one: it tells what is of the moment (`operators.moment`).
    """

    answer: str
    probability: float | None = None
    problem: str = ""
    cause: Exception | None = None

    def error(self) -> RowError | None:
        """The problem as what fails a row; None where there is an answer."""
        if not self.problem:
            return None
        error = RowError(self.problem)
        error.__cause__ = self.cause
        return error


@dataclass(frozen=True, slots=True)
class Requests:
    """How an endpoint is asked. A model in this process has no use for it.

    Attributes:
        concurrency: Requests in flight.
        timeout: Seconds until a request is given up.
        retries: How often a request is sent again.
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4


class Answerer(Protocol):
    """A model that reads an image and a prompt, with its weights loaded."""

    def ask(
        self,
        prompt: str,
        choices: Sequence[str] | None,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Fix what to ask.

        Args:
            prompt: A question or an instruction.
            choices: Answers to choose from; None for any.
            max_tokens: An answer is cut off after so many.
            schema: A JSON schema that the answer must fit; without choices.

        Raises:
            OperatorError: It cannot be asked.
        """
        ...

    def another(self) -> Answerer:
        """The same weights, or the same way to an endpoint, for another question."""
        ...

    def prepare(self, image: DecodedImage) -> Any:
        """Turn an image into the model's input; pure, called in threads.

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


def check(card: ModelCard, prompt: str, choices: Sequence[str] | None, schema: Mapping[str, Any] | None) -> None:
    """Refuse a card that cannot work, or cannot be asked this; loads nothing.

    Raises:
        ModelError: Its architecture or a section does not fit.
        OperatorError: The prompt, choices or schema do not fit the model.
    """
    engine(card).check(card, prompt, choices, schema)


def answerer(card: ModelCard, dtype: Dtype = "auto", requests: Requests | None = None) -> Answerer:
    """The card's model, loaded; of an endpoint, its client.

    Raises:
        ModelError: The weights or the files beside them are missing, corrupt or of another model, or an endpoint's key
            is not set.
    """
    made: Answerer = engine(card).make(card, dtype, requests or Requests())
    return made
