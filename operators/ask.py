"""ask: what a vision-language model says about an image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import AfterValidator, Field

from operators.base import RowError, tuning
from operators.engines import image_text_to_text
from operators.model_operator import ModelOperator, ModelParams
from operators.models.card import ModelCard, require

if TYPE_CHECKING:
    from operators.images import DecodedImage

AnswerCard = Annotated[ModelCard, AfterValidator(require("image-text-to-text", ("transformers",)))]

Choice = Annotated[str, Field(min_length=1, pattern=r"^\S(.*\S)?$")]


def _choices(answers: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if answers is not None and (len(answers) < 2 or len(set(answers)) < len(answers)):
        raise ValueError(f"must be two or more different answers but are {', '.join(answers) or 'none'}")
    return answers


class Ask(ModelOperator):
    """Captions, and answers to questions, of a vision-language model (Liu et al. 2023, LLaVA, and its many relatives).

    Every image is shown with the same prompt. Without `answers` the model writes what it likes, always the likeliest
    next word; with them it chooses, and says how sure it is.
    """

    name = "ask"

    class Params(ModelParams):
        """What to ask, and whom.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            prompt: A question or an instruction.
            answers: What to choose from, such as [yes, no]; the likeliest is the answer. Any text if not given. As the
                model would write them: many begin an answer with a capital.
            max_tokens: A text is cut off after so many tokens; a word has one to three.
            batch: Images per call of the model.
        """

        model: AnswerCard = tuning(...)
        prompt: str = Field("Describe the image.", min_length=1)
        answers: Annotated[tuple[Choice, ...] | None, AfterValidator(_choices)] = None
        max_tokens: int = Field(128, ge=1)
        batch: int = tuning(8, ge=1)

    params: Params

    def writes(self) -> pa.Schema:
        """`answer`; and `probability`, 0…1, of the answer among `answers`, null where those are not given."""
        return pa.schema([pa.field("answer", pa.string()), pa.field("probability", pa.float32())])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        image_text_to_text.check(self.params.model)

    def load(self) -> None:
        self._engine = image_text_to_text.ImageTextToText(self.params.model, self.params.dtype)
        self._engine.ask(self.params.prompt, self.params.answers, self.params.max_tokens)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        return self._engine.prepare(image.pixels)

    def bucket(self, item: Any) -> Hashable:
        return self._engine.bucket(item)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        return [
            {"answer": reply.answer, "probability": reply.probability}
            if reply.finite
            else RowError("the model gave scores that are not finite; try dtype: float32 or bfloat16")
            for reply in self._engine.answer(items)
        ]
