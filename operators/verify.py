"""verify: what other models say about each detection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from labelmill.operators.base import ImageOperator, Needs, OperatorParams, tuning
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detections.crops import box_array, usable
from labelmill.operators.engines.embedding import encoder
from labelmill.operators.engines.embedding.encoder import Template
from labelmill.operators.engines.image_text_to_text import answerer
from labelmill.operators.engines.registry import require
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.labels.second_opinions import NO, YES, Namer, Questioner, overlaps, questions
from labelmill.operators.models.card import Dtype, ModelCard
from labelmill.operators.models.weights import verify as verify_weights
from labelmill.operators.ontology import Ontology

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

Optional = ModelCard | None


def _embeds(card: Optional) -> Optional:
    return card if card is None else require("embedding")(card)


def _answers(card: Optional) -> Optional:
    return card if card is None else require("image-text-to-text")(card)


NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image.

    Attributes:
        detections: As they were read; None where nobody looked.
        boxes: float64 (detections, 4), xyxy.
        known: Places of the detections that show something and are of a class of the ontology.
        crops: Those, as input of the model that names them.
        pixels: uint8 RGB (height, width, 3); empty where no questions are asked about it.
        overlap: For each detection the best IoU with what the other detector found of its class; None if unusable.
    """

    detections: list[dict[str, Any]] | None
    boxes: np.ndarray
    known: list[int]
    crops: list[Any]
    pixels: np.ndarray
    overlap: list[float | None] | None


class Verify(ImageOperator):
    """Second opinions about each detection; a `select` after it decides, by `agreement`.

    Up to three are asked, and each is a column of lists that run parallel to the detections. With `model`, the box is
    cut out and classified as `classify` does with images: `class_probability` is the probability of the detection's own
    class among all of the ontology, and `best_class` the likeliest. With `against`, `overlap` is the best IoU with what
    another detector found of the same class, 0 where it found none. With `ask`, `yes` is the probability that a
    vision-language model answers so when it is asked about the box and some of what is around it.

    `agreement` is the mean of those opinions, each 0…1, where an overlap counts as 1 if it reaches `iou` and else as 0.
    Detections whose box shows nothing of the image, or that have no class, have null everywhere; so has
    `class_probability` where the class is not in the ontology. The detections themselves stay where they are.
    """

    name = "verify"

    class Params(OperatorParams):
        """Who is asked, and about what.

        Attributes:
            detections: The column to verify. A few that `select` chose cost less than all raw ones.
            model: The card of a model for embedding that reads texts, such as CLIP. In the fingerprint its digest
                stands for it.
            templates: Sentences with {} for the class's prompts.
            against: The column of another detector's detections, such as ``select_2.detections``.
            iou: What boxes of two detectors must overlap to be about the same thing.
            ask: The card of a vision-language model. In the fingerprint its digest stands for it.
            question: What it is asked, with {} for the first prompt of the class; answered with yes or no.
            ontology: The classes and their prompts; the pipeline's where a step names none.
            dtype: Arithmetic of the models.
            batch: Images at a time.
            chunk: Boxes per call of a model.
        """

        detections: str = "detections"
        model: Annotated[Optional, AfterValidator(_embeds)] = tuning(None)
        templates: tuple[Template, ...] = Field(("a photo of a {}.",), min_length=1)
        against: str | None = None
        iou: float = Field(0.5, gt=0, le=1)
        ask: Annotated[Optional, AfterValidator(_answers)] = tuning(None)
        question: Template = "Is this a {}?"
        ontology: Ontology | None = None
        dtype: Dtype = "auto"
        batch: int = tuning(4, ge=1)
        chunk: int = tuning(32, ge=1)

        @model_validator(mode="after")
        def _somebody(self) -> Verify.Params:
            if self.model is None and self.against is None and self.ask is None:
                raise ValueError("must have at least one of model, against and ask but has none")
            return self

    params: Params

    def reads(self) -> tuple[str, ...]:
        return (self.params.detections, *([] if self.params.against is None else [self.params.against]))

    def expects(self) -> dict[str, pa.DataType]:
        return dict.fromkeys(self.reads(), DETECTIONS)

    def writes(self) -> pa.Schema:
        """Lists that run parallel to the detections; null where those are null."""
        numbers, given = pa.list_(pa.float32()), self.params
        fields = [("class_probability", numbers), ("best_class", pa.list_(pa.string()))] if given.model else []
        fields += [("overlap", numbers)] if given.against else []
        fields += [("yes", numbers)] if given.ask else []
        return pa.schema([*fields, ("agreement", numbers)])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        given = self.params
        if given.against == given.detections:
            raise OperatorError(f"against must be another column than {given.detections!r}", ("against",))
        if not self._cards():
            return
        if given.ontology is None or not given.ontology.classes:
            raise OperatorError("ontology must have at least one class but is empty", ("ontology",))
        if given.model is not None:
            encoder.check(given.model, text=True)
            if given.model.engine == "open_clip" and len(given.ontology.classes) < 2:
                raise OperatorError(
                    "ontology must have two classes or more, since CLIP says which fits best; give this step one of "
                    "its own, with what could be mistaken for the class",
                    ("ontology",),
                )
        if given.ask is not None:
            for question in questions(given.ontology, given.question).values():
                answerer.check(given.ask, question, (YES, NO), None)

    def needs(self) -> Needs:
        cards = self._cards().values()
        here = any(card.weights.endpoint is None for card in cards)
        memory = sum(card.memory_gb for card in cards)
        return Needs(gpu=here, memory_gb=memory, seconds=None if here else 0.05)  # some boxes an image, asked for

    def digest(self) -> str:
        return "\n".join(f"{role} {card.digest()}" for role, card in self._cards().items())

    def ready(self) -> None:
        for card in self._cards().values():
            verify_weights(card)
        if self.params.ask is not None and self.params.ask.weights.endpoint is not None:
            from labelmill.operators.engines.image_text_to_text.openai import Endpoint

            engine = self._questioner(self.params.ask).engine
            assert isinstance(engine, Endpoint)
            engine.reach()

    def load(self) -> None:
        given = self.params
        self._classes = set(given.ontology.classes) if given.ontology is not None else set()
        if given.model is not None:
            assert given.ontology is not None
            self._order = list(given.ontology.classes)
            self._namer = Namer(given.model, given.ontology, given.templates, given.dtype)
        if given.ask is not None:
            self._asked = self._questioner(given.ask)

    def _cards(self) -> dict[str, ModelCard]:
        given = {"model": self.params.model, "ask": self.params.ask}
        return {role: card for role, card in given.items() if card is not None}

    def _questioner(self, card: ModelCard) -> Questioner:
        assert self.params.ontology is not None
        return Questioner(card, self.params.ontology, self.params.question, self.params.dtype)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item:
        given, detections = self.params, row[self.params.detections]
        if detections is None:
            return Item(None, np.zeros((0, 4)), [], [], NO_PIXELS, None)
        boxes = box_array(detections)
        good = usable(boxes, image.width, image.height)
        known = [place for place in np.flatnonzero(good).tolist() if detections[place]["class"] in self._classes]
        crops = [self._namer.prepare(image.pixels, boxes[place]) for place in known] if given.model else []
        return Item(
            detections, boxes, known, crops, image.pixels if given.ask else NO_PIXELS, self._overlap(row, boxes, good)
        )

    def _overlap(self, row: Mapping[str, Any], boxes: np.ndarray, good: np.ndarray) -> list[float | None] | None:
        if self.params.against is None:
            return None
        others = row[self.params.against]
        if others is None:
            raise RowError(f"no {self.params.against}: nobody looked for objects in this image")
        column: list[float | None] = [None] * len(boxes)
        classes = [each["class"] for each in row[self.params.detections]]
        places = [place for place in np.flatnonzero(good).tolist() if classes[place] is not None]
        found = overlaps(boxes[places], [classes[place] for place in places], others)
        for place, overlap in zip(places, found.tolist(), strict=True):
            column[place] = overlap
        return column

    def infer(self, items: list[Item]) -> list[dict[str, Any] | RowError]:
        results: list[dict[str, Any] | RowError] = [self._empty(item) for item in items]
        places = [(index, place) for index, item in enumerate(items) for place in item.known]
        if self.params.model is not None:
            self._name(items, places, results)
        if self.params.ask is not None:
            self._ask(items, places, results)
        for item, found in zip(items, results, strict=True):
            if not isinstance(found, RowError) and item.detections is not None:
                found["agreement"] = [self._agreement(found, place) for place in range(len(item.detections))]
        return results

    def _empty(self, item: Item) -> dict[str, Any]:
        if item.detections is None:
            return dict.fromkeys(self.writes().names)
        columns: dict[str, Any] = {name: [None] * len(item.detections) for name in self.writes().names}
        return columns if item.overlap is None else {**columns, "overlap": item.overlap}

    def _name(self, items: list[Item], places: list[tuple[int, int]], results: list[dict[str, Any] | RowError]) -> None:
        crops = [each for item in items for each in item.crops]
        for (index, place), row in zip(places, self._namer.probabilities(crops, self.params.chunk), strict=True):
            found = results[index]
            if not np.isfinite(row).all():
                results[index] = RowError("the model gave a vector that is not finite; try dtype: float32")
            elif not isinstance(found, RowError):
                own = _class(items, index, place)
                found["class_probability"][place] = float(row[self._order.index(own)])
                found["best_class"][place] = self._order[int(row.argmax())]

    def _ask(self, items: list[Item], places: list[tuple[int, int]], results: list[dict[str, Any] | RowError]) -> None:
        about = [
            (_class(items, index, place), items[index].pixels, items[index].boxes[place]) for index, place in places
        ]
        for (index, place), answer in zip(places, self._asked.ask(about, self.params.chunk), strict=True):
            found = results[index]
            if isinstance(answer, RowError):
                results[index] = answer
            elif not isinstance(found, RowError):
                found["yes"][place] = answer

    def _agreement(self, found: Mapping[str, list[Any]], place: int) -> float | None:
        opinions = [found[name][place] for name in ("class_probability", "yes") if name in found]
        if "overlap" in found and (overlap := found["overlap"][place]) is not None:
            opinions.append(float(overlap >= self.params.iou))
        given = [opinion for opinion in opinions if opinion is not None]
        return sum(given) / len(given) if given else None


def _class(items: list[Item], index: int, place: int) -> str:
    return str((items[index].detections or [])[place]["class"])
