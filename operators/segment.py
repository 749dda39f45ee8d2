"""segment: the exact pixels of what boxes are around, or of everything there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, field_validator, model_validator

from labelmill.operators.base import tuning
from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.engines.registry import require
from labelmill.operators.engines.segmentation import segmenter
from labelmill.operators.engines.segmentation.masks import Mask
from labelmill.operators.engines.segmentation.point_grid import Everything, detection
from labelmill.operators.errors import RowError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.operator import LabelOperator, ModelParams

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

SegmentationCard = Annotated[ModelCard, AfterValidator(require("segmentation"))]

MASK_BOX = pa.struct([pa.field(side, pa.float32()) for side in SIDES])
"""The extent of a mask, xyxy in pixels of the upright image; null where the mask is empty."""

NOT_FINITE = "the model gave masks that are not finite; try dtype: float32"


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image.

    Attributes:
        given: The engine's input; None for an image without usable boxes, which the model need not see.
        detections: What the masks are for; None where nobody looked, and where everything is looked for.
        boxes: float32 (detections, 4), xyxy.
        usable: bool (detections,): boxes that are four finite numbers with x1 ≤ x2 and y1 ≤ y2.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """

    given: Any
    detections: list[dict[str, Any]] | None
    boxes: np.ndarray
    usable: np.ndarray
    height: int
    width: int


class Segment(LabelOperator):
    """A mask for every detection, from its box (Kirillov et al. 2023, SAM; Ravi et al. 2024, SAM 2).

    The detections of any step, or ``source.labels``, come out again in their order with `mask` filled, in place of one
    that they may have had; everything else about them, boxes too, stays as it was. Beside them stand three lists of the
    same length: `predicted_iou`, what the model expects the mask's IoU with the object to be; `stability`, how little
    the mask depends on its threshold (the IoU of the masks at logits +1 and −1); and `mask_box`, the mask's own extent,
    null for an empty mask. A detection whose box is inverted or not four finite numbers has null for all four. An image
    without detections has empty lists; one where nobody looked for any has nulls.

    With ``everything: true`` no detections are needed: the detections that come out are the masks of whatever is there,
    of the class "object", their extents as boxes and their predicted IoU as score, the highest first. Parts are there
    beside the whole that they belong to, so a `select` after it should say ``containment: null``; and where it has an
    ontology, that needs the class "object".
    """

    name = "segment"
    labels = "as read"

    class Params(ModelParams):
        """What to segment with, and what.

        Attributes:
            model: The model card. In the fingerprint its name and digest stand for it.
            detections: The column whose boxes are the prompts.
            everything: Segment without prompts: true, or points_per_side, floor, stability and nms.
            batch: Images per call of the image encoder; one of 1024 x 1024 pixels is work enough for a GPU.
            chunk: Boxes, or points, per call of the mask decoder.
        """

        model: SegmentationCard = tuning(...)
        detections: str = "detections"
        everything: Everything | None = None
        batch: int = tuning(1, ge=1)
        chunk: int = tuning(16, ge=1)

        @field_validator("everything", mode="before")
        @classmethod
        def _switch(cls, value: Any) -> Any:
            return {True: {}, False: None}[value] if isinstance(value, bool) else value

        @model_validator(mode="after")
        def _one_kind_of_prompt(self) -> Segment.Params:
            if self.everything is not None and "detections" in self.model_fields_set:
                raise ValueError("must have detections or everything but has both")
            return self

    params: Params

    def reads(self) -> tuple[str, ...]:
        return () if self.params.everything else (self.params.detections,)

    def expects(self) -> dict[str, pa.DataType]:
        return dict.fromkeys(self.reads(), DETECTIONS)

    def writes(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("detections", DETECTIONS),
                pa.field("predicted_iou", pa.list_(pa.float32())),
                pa.field("stability", pa.list_(pa.float32())),
                pa.field("mask_box", pa.list_(MASK_BOX)),
            ]
        )

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        segmenter.check(self.params.model, points=self.params.everything is not None)

    def load(self) -> None:
        self._reference = self.params.model.reference()
        self._engine = segmenter.load(self.params.model, self.params.dtype)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item:
        detections = None if self.params.everything else row[self.params.detections]
        boxes = np.array([[each[side] for side in SIDES] for each in detections or []], np.float32).reshape(-1, 4)
        # NaN, also for a side that is null, compares as false.
        usable = np.all((boxes[:, :2] <= boxes[:, 2:]) & np.isfinite(boxes[:, :2] + boxes[:, 2:]), axis=1)
        given = self._engine.prepare(image.pixels) if self.params.everything or usable.any() else None
        return Item(given, detections, boxes, usable, image.height, image.width)

    def infer(self, items: list[Item]) -> list[dict[str, Any] | RowError]:
        seen = [index for index, item in enumerate(items) if item.given is not None]
        embedded = self._engine.encode([items[index].given for index in seen]) if seen else ()
        found = dict(zip(seen, embedded, strict=True))
        if self.params.everything:
            return [self._everything(self.params.everything, item, found[index]) for index, item in enumerate(items)]
        return [self._around_boxes(item, found.get(index)) for index, item in enumerate(items)]

    def _around_boxes(self, item: Item, embedded: Any) -> dict[str, Any] | RowError:
        if item.detections is None:
            return dict.fromkeys(self.writes().names)
        masks: list[Mask | None] = [None] * len(item.detections)
        if embedded is not None:
            boxes = item.boxes[item.usable]
            found = self._engine.decode(embedded, boxes, item.height, item.width, self.params.chunk)
            for index, mask in zip(np.flatnonzero(item.usable).tolist(), found, strict=True):
                if mask is None:
                    return RowError(NOT_FINITE)
                masks[index] = mask
        pairs = zip(item.detections, masks, strict=True)
        return _columns([self._with_mask(each, mask) for each, mask in pairs], masks)

    def _with_mask(self, detection: dict[str, Any], mask: Mask | None) -> dict[str, Any]:
        models = detection.get("models") if mask is None else [*(detection.get("models") or ()), self._reference]
        return {**detection, "mask": mask and mask.counts, "models": models}

    def _everything(self, wanted: Everything, item: Item, embedded: Any) -> dict[str, Any] | RowError:
        points = wanted.grid(item.height, item.width)
        found = self._engine.decode_points(embedded, points, item.height, item.width, self.params.chunk, wanted.floor)
        finite = [mask for mask in found if mask is not None]
        if len(finite) < len(found):
            return RowError(NOT_FINITE)
        masks = wanted.choose(finite)
        return _columns([detection(mask, [self._reference]) for mask in masks], masks)


def _columns(detections: list[dict[str, Any]], masks: Sequence[Mask | None]) -> dict[str, Any]:
    return {
        "detections": detections,
        "predicted_iou": [mask and mask.predicted_iou for mask in masks],
        "stability": [mask and mask.stability for mask in masks],
        "mask_box": [mask and mask.box and dict(zip(SIDES, mask.box, strict=True)) for mask in masks],
    }
