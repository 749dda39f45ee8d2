"""detect: where the ontology's classes are, as boxes."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from labelmill.operators.applying.bisect import bisect
from labelmill.operators.applying.memory import empty_accelerator_cache
from labelmill.operators.base import tuning
from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.detections.tiles import Tiles, Windows, merge
from labelmill.operators.engines import registry
from labelmill.operators.engines.detection.detector import Answer, Detector
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.models.card import Dtype, ModelCard, ModelError
from labelmill.operators.models.operator import LabelOperator, ModelParams
from labelmill.operators.ontology import Ontology

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

DetectionCard = Annotated[ModelCard, AfterValidator(registry.require("detection"))]


def detector(card: ModelCard) -> type[Detector]:
    """The engine that builds a card.

    Raises:
        ModelError: None knows its architecture.
    """
    found: type[Detector] = registry.engine(card)
    return found


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


def engine(card: ModelCard, dtype: Dtype = "auto") -> Detector:
    """The card's model, with its weights loaded.

    Raises:
        ModelError: An optional dependency is not installed, or the weights are missing, corrupt or of another model.
    """
    refuse_missing(card)
    return detector(card)(card, dtype)


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image: the engine's input, and the size in pixels that boxes are scaled to."""

    given: Any
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Large:
    """An image that is seen in tiles: its uint8 RGB pixels (height, width, 3), and the views of it."""

    pixels: np.ndarray
    windows: Windows


class Detect(LabelOperator):
    """Open-vocabulary detection: Grounding DINO (Liu et al. 2023) and its relatives, OWLv2 (Minderer et al. 2023).

    Every prompt of the ontology is asked, however many there are. A detection is a pair of a candidate box and a
    prompt. Grounding DINO scores it by the mean over the prompt's tokens of the token's probability, as in the paper's
    COCO figures, OWLv2 by the prompt's own probability. Detections are raw: overlapping boxes, synonyms and low scores
    are all there, for `select` to decide about.

    With `tiles`, images larger than a tile are also seen tile by tile, as SAHI does (Akyon et al. 2022): a model that
    sees an image of 8,000 pixels at 800 misses what is small. What several views see of one object becomes one
    detection: the best one, or where a tile's border cuts that, the box of a view that shows more (see
    `operators.detections.tiles.merge`).
    """

    name = "detect"
    labels = "raw"

    class Params(ModelParams):
        """What to look with, and how.

        Attributes:
            model: The model card. In the fingerprint its name and digest stand for it.
            ontology: The classes and their prompts; the pipeline's where a step names none.
            floor: Detections score above this; `select` can only choose among them.
            max_detections: The best so many of an image are kept; with tiles, of each view of it.
            tiles: How to cut up large images: size, overlap, whole. Images are seen whole alone if not given.
            batch: Images per call of the model, or tiles.
        """

        model: DetectionCard = tuning(...)
        ontology: Ontology
        floor: float = Field(0.1, ge=0, le=1)
        max_detections: int = Field(300, ge=1)
        tiles: Tiles | None = None
        batch: int = tuning(4, ge=1)

    params: Params

    @property
    def batch(self) -> int:
        """With tiles one image at a time: it fills batches by itself, and may be huge."""
        return self.params.batch if self.params.tiles is None else 1

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
        detector(self.params.model).check(self.params.model, self.params.ontology)
        self.use(engine(self.params.model, self.params.dtype))

    def use(self, engine: Detector) -> None:
        """Ask a model that is loaded already, in place of `load`.

        Args:
            engine: Of `params.model`. Several operators may use it, one at a time.

        Raises:
            OperatorError: A prompt cannot be asked.
        """
        detector(self.params.model).check(self.params.model, self.params.ontology)
        self._engine = copy.copy(engine)  # the same weights, with a question of its own
        self._asked = self._engine.ask(self.params.ontology)
        self._models = [self.params.model.reference()]
        names = list(self.params.ontology.classes)
        self._classes = np.array([names.index(name) for _, name in self._asked])
        self._at_once = self.params.batch

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item | Large:
        if self.params.tiles is not None:
            windows = self.params.tiles.windows(image.width, image.height)
            if len(windows) > 1:
                return Large(image.pixels, windows)
        return self._item(image.pixels)

    def _item(self, pixels: np.ndarray) -> Item:
        return Item(self._engine.prepare(pixels), pixels.shape[1], pixels.shape[0])

    def bucket(self, item: Item | Large) -> Hashable:
        return "large" if isinstance(item, Large) else self._engine.bucket(item.given)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        if isinstance(items[0], Large):
            return [self._large(item) for item in items]
        return [image.result(self._asked, self._models) for image in self._look(items)]

    def _look(self, items: list[Item]) -> list[Found]:
        found = [Found(item, self.params.floor, self.params.max_detections) for item in items]
        for answer in self._engine.detect([item.given for item in items]):
            for index, image in enumerate(found):
                image.add(answer, index)
        return found

    def _large(self, image: Large) -> dict[str, Any] | RowError:
        parts, views = [np.zeros((0, 6), dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
        for view, found in enumerate(self._views(image)):
            if not found.finite:
                return RowError(NOT_FINITE)
            rows = found.rows.copy()
            rows[:, 2:] += np.tile(image.windows[view, :2], 2)
            parts.append(rows)
            views.append(np.full(len(rows), view))
        rows, view_of = np.concatenate(parts), np.concatenate(views)
        order = best_first(rows)
        rows, view_of = rows[order], view_of[order]
        stays, boxes = merge(rows[:, 2:], self._classes[rows[:, 1].astype(np.int64)], view_of, image.windows)
        rows = np.column_stack([rows[stays, :2], boxes])
        return {"detections": detections(rows[best_first(rows)], self._asked, self._models)}

    def _views(self, image: Large) -> Iterator[Found]:
        """What each view shows, a micro-batch at a time; the next one is prepared meanwhile."""

        def prepare(views: np.ndarray) -> list[Item]:
            return [self._item(image.pixels[top:bottom, left:right]) for left, top, right, bottom in views.tolist()]

        start, windows = 0, image.windows
        with ThreadPoolExecutor(1, thread_name_prefix="tiles") as pool:
            ahead = pool.submit(prepare, windows[: self._at_once])
            while start < len(windows):
                items = ahead.result()
                start += len(items)
                ahead = pool.submit(prepare, windows[start : start + self._at_once])
                for _, group in groupby(items, key=self.bucket):
                    yield from bisect(self._look, list(group), fail=_give_up, on_memory=self._halve)

    def _halve(self, items: list[Item]) -> None:
        self._at_once = max(1, min(self._at_once, (len(items) + 1) // 2))
        empty_accelerator_cache()


def _give_up(error: Exception) -> NoReturn:
    raise error


NOT_FINITE = "the model gave scores or boxes that are not finite; try dtype: float32"


class Found:
    """The detections of one image, or of one view of it, while answers come in.

    Attributes:
        rows: float32 (n, 6): score, prompt, x1, y1, x2, y2 in pixels, in the order of `best_first`.
        finite: Whether all that the model gave was a number.
    """

    def __init__(self, item: Item, floor: float, limit: int) -> None:
        self._item, self._floor, self._limit = item, floor, limit
        self.finite = True
        self.rows = np.zeros((0, 6), dtype=np.float32)

    def add(self, answer: Answer, index: int) -> None:
        """Take what one answer says about image `index` of the batch."""
        scores, boxes = answer.scores[index], answer.boxes[index]
        self.finite = self.finite and bool(np.isfinite(scores).all() and np.isfinite(boxes).all())
        candidates, prompts = np.nonzero(scores > self._floor)
        size = np.array([self._item.width, self._item.height] * 2, dtype=np.float32)
        pixels = np.clip(boxes[candidates] * size, 0, size)
        rows = np.column_stack([scores[candidates, prompts], answer.prompts[prompts], pixels]).astype(np.float32)
        inside = (pixels[:, 2] > pixels[:, 0]) & (pixels[:, 3] > pixels[:, 1])
        rows = np.concatenate([self.rows, rows[inside]])
        self.rows = rows[best_first(rows)[: self._limit]]

    def result(self, asked: list[tuple[str, str]], models: list[str]) -> dict[str, Any] | RowError:
        """The image's columns. A model that gave NaN saw nothing, which is not the same as an empty image."""
        if not self.finite:
            return RowError(NOT_FINITE)
        return {"detections": detections(self.rows, asked, models)}


def best_first(rows: np.ndarray) -> np.ndarray:
    """The order of `Found.rows`: by score, the highest first, then prompt, then box."""
    return np.lexsort((*rows[:, :0:-1].T, -rows[:, 0]))


def detections(rows: np.ndarray, asked: list[tuple[str, str]], models: list[str]) -> list[dict[str, Any]]:
    """`Found.rows` as `operators.columns.schemas.DETECTIONS`."""
    found = []
    for score, prompt, *box in rows.tolist():
        text, name = asked[int(prompt)]
        found.append(
            {
                **dict(zip(SIDES, box, strict=True)),
                "class": name,
                "score": score,
                "prompt": text,
                "mask": None,
                "models": models,
            }
        )
    return found
