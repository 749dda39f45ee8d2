"""segment: the exact pixels of what boxes are around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator

from operators.base import RowError, tuning
from operators.engines import segment_anything
from operators.engines.segment_anything import Mask
from operators.model_operator import ModelOperator, ModelParams
from operators.models.card import ModelCard, require
from operators.schemas import DETECTIONS, SIDES

if TYPE_CHECKING:
    from operators.images import DecodedImage

SegmentationCard = Annotated[ModelCard, AfterValidator(require("segmentation", ("segment_anything",)))]

MASK_BOX = pa.struct([pa.field(side, pa.float32()) for side in SIDES])
"""The extent of a mask, xyxy in pixels of the upright image; null where the mask is empty."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image.

    Attributes:
        given: The engine's input; None for an image without usable boxes, which the model need not see.
        detections: What the masks are for; None where nobody looked.
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


class Segment(ModelOperator):
    """A mask for every detection, from its box (Kirillov et al. 2023, SAM).

    The detections of any step, or ``source.labels``, come out again in their order with `mask` filled, in place of one
    that they may have had; everything else about them, boxes too, stays as it was. Beside them stand three lists of the
    same length: `predicted_iou`, what the model expects the mask's IoU with the object to be; `stability`, how little
    the mask depends on its threshold (the IoU of the masks at logits +1 and −1); and `mask_box`, the mask's own extent,
    null for an empty mask. A detection whose box is inverted or not four finite numbers has null for all four. An image
    without detections has empty lists; one where nobody looked for any has nulls.
    """

    name = "segment"

    class Params(ModelParams):
        """What to segment with, and what.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            detections: The column whose boxes are the prompts.
            batch: Images per call of the image encoder; one of 1024 x 1024 pixels is work enough for a GPU.
            chunk: Boxes per call of the mask decoder.
        """

        model: SegmentationCard = tuning(...)
        detections: str = "detections"
        batch: int = tuning(1, ge=1)
        chunk: int = tuning(16, ge=1)

    params: Params

    def reads(self) -> tuple[str, ...]:
        return (self.params.detections,)

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.detections: DETECTIONS}

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
        segment_anything.check(self.params.model)

    def load(self) -> None:
        self._engine = segment_anything.SegmentAnything(self.params.model, self.params.dtype)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item:
        detections = row[self.params.detections]
        boxes = np.array([[each[side] for side in SIDES] for each in detections or []], np.float32).reshape(-1, 4)
        # NaN, also for a side that is null, compares as false.
        usable = np.all((boxes[:, :2] <= boxes[:, 2:]) & np.isfinite(boxes[:, :2] + boxes[:, 2:]), axis=1)
        given = self._engine.prepare(image.pixels) if usable.any() else None
        return Item(given, detections, boxes, usable, image.height, image.width)

    def infer(self, items: list[Item]) -> list[dict[str, Any] | RowError]:
        seen = [index for index, item in enumerate(items) if item.given is not None]
        embedded = self._engine.encode([items[index].given for index in seen]) if seen else ()
        found = dict(zip(seen, embedded, strict=True))
        return [self._columns(item, found.get(index)) for index, item in enumerate(items)]

    def _columns(self, item: Item, embedded: Any) -> dict[str, Any] | RowError:
        if item.detections is None:
            return dict.fromkeys(self.writes().names)
        masks: list[Mask | None] = [None] * len(item.detections)
        if embedded is not None:
            boxes = item.boxes[item.usable]
            found = self._engine.decode(embedded, boxes, item.height, item.width, self.params.chunk)
            for index, mask in zip(np.flatnonzero(item.usable).tolist(), found, strict=True):
                if mask is None:
                    return RowError("the model gave masks that are not finite; try dtype: float32")
                masks[index] = mask
        return {
            "detections": [
                {**each, "mask": mask and mask.counts} for each, mask in zip(item.detections, masks, strict=True)
            ],
            "predicted_iou": [mask and mask.predicted_iou for mask in masks],
            "stability": [mask and mask.stability for mask in masks],
            "mask_box": [mask and mask.box and dict(zip(SIDES, mask.box, strict=True)) for mask in masks],
        }
