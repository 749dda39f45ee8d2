"""What is loaded of a card, by its task, and what answers questions with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.settings import Settings
from labelmill.pipelines.serve.work import OperatorWork, TextWork

TASKS = ("embedding", "detection", "segmentation", "text-detection", "ocr", "gaze", "image-text-to-text")
"""What the server can do something with."""


class Embedding:
    """Both sides of an embedding model; the text side is loaded when a text comes."""

    def __init__(self, card: ModelCard, dtype: Dtype, batch: int | None) -> None:
        from labelmill.operators.embed import Embed

        operator = Embed(Embed.Params(model=card, dtype=dtype))
        operator.load()
        self.card, self.images = card, OperatorWork(operator, batch)
        self._texts: TextWork | None = None

    def texts(self) -> TextWork:
        """The text side.

        Raises:
            ApiError: 400, the model has none.
        """
        from labelmill.operators.engines.embedding import encoder
        from labelmill.operators.errors import OperatorError

        if self._texts is None:
            try:
                encoder.check(self.card, text=True)
                self._texts = TextWork(encoder.text_encoder(self.card))
            except OperatorError as error:
                raise ApiError(400, str(error)) from error
        return self._texts


def load_part(card: ModelCard, settings: Settings, named: Mapping[str, ModelCard]) -> Any:
    """Load a card's model.

    Args:
        card: Which.
        settings: Of the server.
        named: All cards of the server, by the names that requests call them.

    Returns:
        What works are made from: an `Embedding`, a `Detector`, an `Answerer`, or a loaded operator.

    Raises:
        OperatorError: It cannot be built.
        ApiError: 404, no route has a use for its task.
    """
    dtype: Any = settings.dtype
    operator: Any
    if card.task == "embedding":
        return Embedding(card, dtype, settings.batch)
    if card.task == "detection":
        from labelmill.operators.detect import engine

        return engine(card, dtype)
    if card.task == "image-text-to-text":
        from labelmill.operators.engines.image_text_to_text import answerer

        return answerer.answerer(card, dtype)
    if card.task == "segmentation":
        from labelmill.operators.segment import Segment

        operator = Segment(Segment.Params(model=card, dtype=dtype))
    elif card.task == "gaze":
        from labelmill.operators.gaze import Gaze

        operator = Gaze(Gaze.Params(model=card, dtype=dtype))
    elif card.task in ("text-detection", "ocr"):
        from labelmill.operators.read import Read

        operator = Read(Read.Params(model=card, recognition=_recognition(card, named), dtype=dtype))
    else:
        raise ApiError(404, f"model must be a card for one of {', '.join(TASKS)} but {card.name} is for {card.task}")
    operator.load()
    return operator


def _recognition(card: ModelCard, named: Mapping[str, ModelCard]) -> ModelCard | None:
    """The card that reads the words which this one finds; None for one that does both."""
    from labelmill.operators.engines.text import reader

    if card.task != reader.DETECTION:
        return None
    found = next((each for each in named.values() if each.task == reader.RECOGNITION), None)
    if found is None:
        raise ApiError(
            404,
            f"{card.name} finds words but reads none: start the server with a card for {reader.RECOGNITION} too, such "
            "as doctr-recognition-miniature",
        )
    return found
