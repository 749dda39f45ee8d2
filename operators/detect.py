"""detect: where the ontology's classes are, as boxes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from operators.base import OperatorError, RowError, tuning
from operators.engines.detector import Answer, Detector
from operators.engines.grounding_dino import GroundingDino
from operators.engines.groundingdino_original import OriginalGroundingDino
from operators.engines.owlv2 import Owlv2
from operators.model_operator import ModelOperator, ModelParams
from operators.models.card import ModelCard, ModelError, require
from operators.ontology import Ontology
from operators.schemas import DETECTIONS

if TYPE_CHECKING:
    from operators.images import DecodedImage

DETECTORS: dict[str, tuple[type[Detector], ...]] = {
    "transformers": (GroundingDino, Owlv2),
    "groundingdino": (OriginalGroundingDino,),
}
"""What a card's `engine` can build."""

DetectionCard = Annotated[ModelCard, AfterValidator(require("detection", tuple(DETECTORS)))]


def detector(card: ModelCard) -> type[Detector]:
    """The engine that builds a card.

    Raises:
        ModelError: None knows its architecture.
    """
    for found in DETECTORS[card.engine]:
        if card.architecture in found.architectures:
            return found
    known = [name for each in DETECTORS[card.engine] for name in each.architectures]
    raise ModelError(
        f"model card {card.name}: architecture must be one of {', '.join(known)} but is {card.architecture}"
    )


def refuse_missing(card: ModelCard) -> None:
    """Say how to install the optional dependency that a card's engine needs.

    Raises:
        ModelError: It is not installed.
    """
    extra = detector(card).extra
    if extra is not None and find_spec(extra) is None:
        raise ModelError(
            f"model card {card.name} needs the module {extra}, which is not installed; "
            f"run `pip install --editable '.[{extra}]'` in labelmill's folder"
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image: the engine's input, and the size in pixels that boxes are scaled to."""

    given: Any
    width: int
    height: int


class Detect(ModelOperator):
    """Open-vocabulary detection: Grounding DINO (Liu et al. 2023) and its relatives, OWLv2 (Minderer et al. 2023).

    Every prompt of the ontology is asked, however many there are. A detection is a pair of a candidate box and a
    prompt. Grounding DINO scores it by the mean over the prompt's tokens of the token's probability, as in the paper's
    COCO figures, OWLv2 by the prompt's own probability. Detections are raw: overlapping boxes, synonyms and low scores
    are all there, for `select` to decide about.
    """

    name = "detect"

    class Params(ModelParams):
        """What to look with, and how.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            ontology: The classes and their prompts; the pipeline's where a step names none.
            floor: Detections score above this; `select` can only choose among them.
            max_detections: The best so many of an image are kept.
            batch: Images per call of the model.
        """

        model: DetectionCard = tuning(...)
        ontology: Ontology
        floor: float = Field(0.1, ge=0, le=1)
        max_detections: int = Field(300, ge=1)
        batch: int = tuning(4, ge=1)

    params: Params

    def writes(self) -> pa.Schema:
        """`detections`: the highest score first; equal scores in the order of prompt text, then of the box."""
        return pa.schema([pa.field("detections", DETECTIONS)])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        if not self.params.ontology.classes:
            raise OperatorError("ontology must have at least one class but is empty", ("ontology",))
        detector(self.params.model).check(self.params.model, self.params.ontology)

    def ready(self) -> None:
        super().ready()
        refuse_missing(self.params.model)

    def load(self) -> None:
        card = self.params.model
        detector(card).check(card, self.params.ontology)
        refuse_missing(card)
        self._engine = detector(card)(card, self.params.dtype)
        self._asked = self._engine.ask(self.params.ontology)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item:
        return Item(self._engine.prepare(image.pixels), image.width, image.height)

    def bucket(self, item: Item) -> Hashable:
        return self._engine.bucket(item.given)

    def infer(self, items: list[Item]) -> list[dict[str, Any] | RowError]:
        found = [Found(item, self.params.floor, self.params.max_detections) for item in items]
        for answer in self._engine.detect([item.given for item in items]):
            for index, image in enumerate(found):
                image.add(answer, index)
        return [image.result(self._asked) for image in found]


class Found:
    """The detections of one image, while answers come in."""

    def __init__(self, item: Item, floor: float, limit: int) -> None:
        self._item, self._floor, self._limit = item, floor, limit
        self._finite = True
        self._rows = np.zeros((0, 6), dtype=np.float32)

    def add(self, answer: Answer, index: int) -> None:
        """Take what one answer says about image `index` of the batch: rows of score, prompt, x1, y1, x2, y2."""
        scores, boxes = answer.scores[index], answer.boxes[index]
        self._finite = self._finite and bool(np.isfinite(scores).all() and np.isfinite(boxes).all())
        candidates, prompts = np.nonzero(scores > self._floor)
        size = np.array([self._item.width, self._item.height] * 2, dtype=np.float32)
        pixels = np.clip(boxes[candidates] * size, 0, size)
        rows = np.column_stack([scores[candidates, prompts], answer.prompts[prompts], pixels]).astype(np.float32)
        inside = (pixels[:, 2] > pixels[:, 0]) & (pixels[:, 3] > pixels[:, 1])
        rows = np.concatenate([self._rows, rows[inside]])
        order = np.lexsort((*rows[:, :0:-1].T, -rows[:, 0]))
        self._rows = rows[order[: self._limit]]

    def result(self, asked: list[tuple[str, str]]) -> dict[str, Any] | RowError:
        """The image's columns. A model that gave NaN saw nothing, which is not the same as an empty image."""
        if not self._finite:
            return RowError("the model gave scores or boxes that are not finite; try dtype: float32")
        detections = []
        for score, prompt, *box in self._rows.tolist():
            text, name = asked[int(prompt)]
            detections.append(
                {
                    **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
                    "class": name,
                    "score": score,
                    "prompt": text,
                    "mask": None,
                }
            )
        return {"detections": detections}
