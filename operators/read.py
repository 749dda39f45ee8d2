"""read: the text in an image, word by word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator

from labelmill.operators.base import Needs, tuning
from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.engines.registry import require
from labelmill.operators.engines.text import reader
from labelmill.operators.engines.text.reader import Item, Word
from labelmill.operators.errors import RowError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.operator import ModelOperator, ModelParams
from labelmill.operators.models.weights import verify

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage


def _reads_words(card: ModelCard | None) -> ModelCard | None:
    return card if card is None else require(reader.RECOGNITION)(card)


ReadingCard = Annotated[ModelCard, AfterValidator(require(reader.DETECTION, reader.OCR))]
RecognitionCard = Annotated[ModelCard | None, AfterValidator(_reads_words)]

_BOX = [pa.field(side, pa.float32()) for side in SIDES]
WORD = pa.struct(
    [
        pa.field("text", pa.string()),
        pa.field("confidence", pa.float32()),  # 0…1
        pa.field("quad", pa.list_(pa.float32(), 8)),  # x, y of the corners, clockwise from the top left of the text
        *_BOX,  # the smallest upright box around the quad
        pa.field("line", pa.int32()),  # which of the lines it stands in, from 0
    ]
)
"""One word, in pixels of the upright image."""
LINE = pa.struct([pa.field("text", pa.string()), *_BOX])
"""One line: its words with a space between them, and the smallest upright box around them."""


class Read(ModelOperator):
    """Find and read text with docTR (Mindee) or PP-OCR (Du et al. 2020, by RapidOCR).

    With docTR one card finds words and another one, `recognition`, reads each of them. A card of PP-OCR does both, line
    by line; what it reads falls into words at the spaces.

    `words` and `lines` are in the order of reading, top to bottom and left to right; `text` is all lines, one below the
    other. Words may be turned: with docTR by up to 45 degrees, with PP-OCR also upside down or from top to bottom. An
    image without text has empty lists and an empty text. With `inside`, so has one without boxes of those classes, and
    `words` is null where nobody looked for any.
    """

    name = "read"

    class Params(ModelParams):
        """What to read with, and where.

        Attributes:
            model: The model card of a text detection model, or of one that reads too, such as pp-ocrv6-small. In the
                fingerprint its digest stands for it.
            recognition: The model card of the text recognition model, likewise. Not with a `model` that reads too.
            inside: Read only words whose centre lies inside a detection of one of these classes; all words if empty.
            detections: The column of those detections.
            batch: Images per call of the detection model. The words of all of them are read together.
        """

        model: ReadingCard = tuning(...)
        recognition: RecognitionCard = tuning(None)
        inside: tuple[str, ...] = ()
        detections: str = "detections"
        batch: int = tuning(8, ge=1)

    params: Params

    def reads(self) -> tuple[str, ...]:
        return (self.params.detections,) if self.params.inside else ()

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.detections: DETECTIONS}

    def writes(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("words", pa.list_(WORD)),
                pa.field("lines", pa.list_(LINE)),
                pa.field("text", pa.string()),
            ]
        )

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        reader.check(self.params.model, self.params.recognition, self.params.dtype)

    def needs(self) -> Needs:
        onnx = any(card.engine == "rapidocr" for card in self._cards())
        memory = sum(card.memory_gb for card in self._cards())
        return Needs(gpu=not onnx, memory_gb=memory, seconds=0.25 if onnx else None)

    def digest(self) -> str:
        return "\n".join(card.digest() for card in self._cards())

    def ready(self) -> None:
        for card in self._cards():
            verify(card)

    def load(self) -> None:
        self._reader = reader.build(self.params.model, self.params.recognition, self.params.dtype)

    def _cards(self) -> list[ModelCard]:
        return [card for card in (self.params.model, self.params.recognition) if card is not None]

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item | list[Word] | None:
        """The engine's input; or what is known without looking: no words, or None where nobody looked for boxes."""
        boxes = None
        if self.params.inside:
            detections = row[self.params.detections]
            if detections is None:
                return None
            chosen = [each for each in detections if each["class"] in self.params.inside]
            if not chosen:
                return []
            boxes = np.array([[each[side] for side in SIDES] for each in chosen], np.float64)
        return Item(image.pixels, self._reader.prepare(image.pixels), boxes)

    def infer(self, items: list[Item | list[Word] | None]) -> list[dict[str, Any] | RowError]:
        seen = [index for index, item in enumerate(items) if isinstance(item, Item)]
        read = self._reader.read([item for item in items if isinstance(item, Item)]) if seen else []
        found = dict(zip(seen, read, strict=True))
        results: list[dict[str, Any] | RowError] = []
        for index, item in enumerate(items):
            words = found.get(index, item)
            if words is not None:
                results.append(_columns(words))
            elif item is None:
                results.append(dict.fromkeys(self.writes().names))
            else:
                results.append(RowError("the model gave values that are not finite; try dtype: float32"))
        return results


def _columns(words: Any) -> dict[str, Any]:
    rows = [
        {
            "text": word.text,
            "confidence": word.confidence,
            "quad": word.quad.ravel().tolist(),
            **_box(word.quad),
            "line": word.line,
        }
        for word in words
    ]
    lines: list[dict[str, Any]] = []
    for number in range(1 + max((word.line for word in words), default=-1)):
        own = [word for word in words if word.line == number]
        lines.append({"text": " ".join(word.text for word in own), **_box(np.concatenate([word.quad for word in own]))})
    return {"words": rows, "lines": lines, "text": "\n".join(line["text"] for line in lines)}


def _box(points: np.ndarray) -> dict[str, float]:
    return dict(zip(SIDES, (*points.min(axis=0).tolist(), *points.max(axis=0).tolist()), strict=True))
