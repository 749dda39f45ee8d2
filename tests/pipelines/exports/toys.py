"""An operator that says things about images, for tests of what exports are handed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from labelmill.operators.base import ImageOperator, OperatorParams
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models.card import ModelCard
from labelmill.operators.read import WORD
from tests.pipelines.exports.scenes import detection

BOX = {"x1": 2.0, "y1": 3.0, "x2": 12.0, "y2": 9.0}
QUAD = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]


class Says(ImageOperator):
    """Every image shows a disc and the word of its number, and is of one of two kinds; every fourth has no caption."""

    class Params(OperatorParams):
        card: ModelCard | None = None
        more: tuple[ModelCard, ...] = ()

    def writes(self) -> pa.Schema:
        return pa.schema(
            [
                ("detections", DETECTIONS),
                ("words", pa.list_(WORD)),
                ("remark", pa.string()),
                ("kind", pa.dictionary(pa.int32(), pa.string())),
                ("number", pa.int64()),
            ]
        )

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> int:
        return int(row["image_id"])

    def infer(self, items: list[int]) -> list[dict[str, Any] | RowError]:
        return [
            {
                "detections": [detection("disc", (2, 3, 12, 9), prompt="a disc", models=["toy@0123456789ab"])],
                "words": [{"text": str(number), "confidence": 0.5, "quad": QUAD, **BOX, "line": 0}],
                "remark": f"Image {number}." if number % 4 else None,
                "kind": "odd" if number % 2 else "even",
                "number": number,
            }
            for number in items
        ]
