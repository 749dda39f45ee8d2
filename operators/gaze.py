"""gaze: where faces look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from labelmill.operators.base import tuning
from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.engines.registry import engine, require
from labelmill.operators.errors import RowError
from labelmill.operators.models.card import ModelCard
from labelmill.operators.models.operator import ModelOperator, ModelParams

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

GazeCard = Annotated[ModelCard, AfterValidator(require("gaze"))]


GAZES = pa.list_(
    pa.struct(
        [
            *(pa.field(side, pa.float32()) for side in SIDES),
            pa.field("yaw", pa.float32()),  # degrees; > 0 to the left edge of the image
            pa.field("pitch", pa.float32()),  # degrees; > 0 up
            pa.field("detection", pa.int32()),  # its place, from 0, among the detections that were read
        ]
    )
)
"""All faces of one image: the box, and where the face looks; (0, 0) is into the camera."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared image.

    Attributes:
        faces: uint8 (faces, side, side, 3).
        boxes: For each face its box and the place of its detection, as they are written.
    """

    faces: np.ndarray
    boxes: list[dict[str, Any]]


class Gaze(ModelOperator):
    """The direction in which each face looks, by L2CS-Net (Abdelrahman et al. 2022).

    Faces are detections that another step made or the source has; put `select` between `detect` and this step, or every
    raw box is a face. A box is cut out as it is, without a margin: the model was trained on boxes around faces.
    """

    name = "gaze"

    class Params(ModelParams):
        """What to look with, and at.

        Attributes:
            model: The model card. In the fingerprint its digest stands for it.
            detections: The column with the face boxes.
            classes: Detections of these classes are faces.
            batch: Images whose faces are put together for the model.
        """

        model: GazeCard = tuning(...)
        detections: str = "detections"
        classes: Annotated[tuple[str, ...], Field(min_length=1)] = ("face",)

    params: Params

    def reads(self) -> tuple[str, ...]:
        return (self.params.detections,)

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.detections: DETECTIONS}

    def writes(self) -> pa.Schema:
        """`gaze`: one entry for each face, in the order of the detections; null where detections are null."""
        return pa.schema([pa.field("gaze", GAZES)])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        super().check(columns)
        engine(self.params.model).check(self.params.model)

    def load(self) -> None:
        self._estimator = engine(self.params.model).make(self.params.model, self.params.dtype)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Item | None:
        detections = row[self.params.detections]
        if detections is None:
            return None
        boxes = [
            {**{side: found[side] for side in SIDES}, "detection": place}
            for place, found in enumerate(detections)
            if found["class"] in self.params.classes
        ]
        corners = [[box[side] for side in SIDES] for box in boxes]
        for box, corner in zip(boxes, corners, strict=True):
            if not all(value is not None and np.isfinite(value) for value in corner):
                raise RowError(f"the box of detection {box['detection']} must be four finite numbers but is {corner}")
        return Item(self._estimator.prepare(image.pil(), corners), boxes)

    def infer(self, items: list[Item | None]) -> list[dict[str, Any] | RowError]:
        faces = [item.faces for item in items if item is not None]
        angles = self._estimator.look(np.concatenate(faces)) if faces else np.zeros((0, 2), np.float32)
        ends = np.cumsum([0 if item is None else len(item.boxes) for item in items])
        return [_row(item, part) for item, part in zip(items, np.split(angles, ends[:-1]), strict=True)]


def _row(item: Item | None, angles: np.ndarray) -> dict[str, Any] | RowError:
    """The columns of one image, whose faces look at these angles (faces, 2)."""
    if item is None:
        return {"gaze": None}
    if not np.isfinite(angles).all():
        return RowError("the model gave angles that are not finite; try dtype: float32")
    return {
        "gaze": [
            {**box, "yaw": yaw, "pitch": pitch} for box, (yaw, pitch) in zip(item.boxes, angles.tolist(), strict=True)
        ]
    }
