"""What `segment` does without prompts: a grid of points, and of their masks the good and different ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.detections.boxes import suppress

if TYPE_CHECKING:
    from labelmill.operators.engines.segmentation.masks import Mask

CLASS = "object"
"""The class of whatever is found: nobody said what to look for."""


class Everything(BaseModel):
    """How to segment an image without prompts, as SamAutomaticMaskGenerator does (Kirillov et al. 2023, appendix B).

    Masks are ranked by predicted IoU, which becomes the detections' score. Raising the threshold of that score later,
    with `select`, therefore gives exactly what a higher `floor` would have given.

    Attributes:
        points_per_side: The grid has this many points squared, each in the middle of its cell.
        floor: Masks have a predicted IoU above this. SAM's authors take 0.88, those of SAM 2 take 0.8.
        stability: The least stability that stays, 0…1.
        nms: Of two masks whose boxes have a larger IoU the one with the higher predicted IoU stays.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_per_side: int = Field(32, ge=1, le=256)
    floor: float = Field(0.8, ge=0, le=1)
    stability: float = Field(0.95, ge=0, le=1)
    nms: float = Field(0.7, ge=0, le=1)

    def grid(self, height: int, width: int) -> np.ndarray:
        """The points, row by row: float32 (n, 2), xy in pixels."""
        middles = (np.arange(self.points_per_side) + 0.5) / self.points_per_side
        x, y = np.meshgrid(middles * width, middles * height)
        return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)

    def choose(self, masks: Sequence[Mask]) -> list[Mask]:
        """The stable ones without doubles, the highest predicted IoU first."""
        stable = [mask for mask in masks if mask.box and mask.stability >= self.stability]
        stable.sort(key=lambda mask: -mask.predicted_iou)
        # The generator's boxes end at the last pixel's own coordinate, not at its edge.
        boxes = np.array([mask.box for mask in stable], np.float64).reshape(-1, 4) - [0, 0, 1, 1]
        with np.errstate(invalid="ignore"):  # boxes of one pixel have no area, and overlap nothing
            by, _ = suppress(boxes, np.zeros(len(boxes), np.int64), self.nms)
        return [mask for mask, better in zip(stable, by.tolist(), strict=True) if better < 0]


def detection(mask: Mask, models: list[str]) -> dict[str, Any]:
    """A detection of the class "object": the mask, its extent, and its predicted IoU, held to 0…1, as score."""
    box = dict(zip(SIDES, mask.box or (), strict=True))
    score = min(max(mask.predicted_iou, 0.0), 1.0)
    return {**box, "class": CLASS, "score": score, "prompt": None, "mask": mask.counts, "models": models}
