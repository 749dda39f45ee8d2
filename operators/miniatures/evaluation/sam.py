"""How right the masks of the SAM miniature are."""

from __future__ import annotations

import numpy as np

from labelmill.operators.engines.segmentation.segment_anything import SegmentAnything
from labelmill.operators.miniatures.evaluation import SEED
from labelmill.operators.miniatures.training.scenes import SIDE, describe
from labelmill.operators.miniatures.world import World
from labelmill.operators.models.card import ModelCard

IMAGES, BOXES = 4, 16
"""Images and boxes per call of the model."""


def evaluate(card: ModelCard, scenes: int = 1000) -> dict[str, float]:
    """Segment from the true boxes, and compare with the true masks at the image's resolution.

    Args:
        card: A card for the engine segment_anything.
        scenes: How many scenes; pairs and words are those of the whole world, held out or not.

    Returns:
        All are shares, 0…1:

        - ``iou``: mean IoU over everything that has a box;
        - ``iou objects``, ``iou faces``, ``iou signs``: over these alone;
        - ``iou lowest tenth``: the IoU that nine of ten reach;
        - ``predicted iou error``: mean distance of the predicted IoU from the true one.
    """
    from pycocotools import mask as coco_mask

    model = SegmentAnything(card)
    world = World(SEED, SIDE, pairs="all", words="all")
    kinds: list[str] = []
    overlaps: list[float] = []
    predicted: list[float] = []
    for start in range(0, scenes, IMAGES):
        drawn = [world.scene(index) for index in range(start, min(start + IMAGES, scenes))]
        embedded = model.encode([model.prepare(scene.pixels) for scene in drawn])
        for scene, own in zip(drawn, embedded, strict=True):
            labels, things = describe(scene)
            boxes = np.array([thing.box for thing in things], np.float32).reshape(-1, 4)
            masks = model.decode(own, boxes, SIDE, SIDE, BOXES)
            for number, (thing, mask) in enumerate(zip(things, masks, strict=True), 1):
                kinds.append("objects" if thing.colour else f"{thing.kind}s")
                predicted.append(mask.predicted_iou if mask else 0.0)
                truth = coco_mask.encode(np.asfortranarray(labels == number, np.uint8))
                found = {"size": labels.shape, "counts": mask.counts} if mask else None
                overlaps.append(float(coco_mask.iou([found], [truth], [False])[0, 0]) if found else 0.0)
    iou = np.array(overlaps)
    of_kind = {f"iou {kind}": float(iou[np.array(kinds) == kind].mean()) for kind in sorted(set(kinds))}
    return {
        "iou": float(iou.mean()),
        **of_kind,
        "iou lowest tenth": float(np.quantile(iou, 0.1)),
        "predicted iou error": float(np.abs(np.array(predicted) - iou).mean()),
    }
