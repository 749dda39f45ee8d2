"""How right a detector is on the drawn world: COCO's average precision, by pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detect import Found, Item
from labelmill.operators.engines.detection.grounding_dino import GroundingDino
from labelmill.operators.measures.detections import average_precision, bbox, match
from labelmill.operators.miniatures.captions import FACE, SIGN
from labelmill.operators.miniatures.evaluation import SEED
from labelmill.operators.miniatures.objects import HELD_OUT, pairs
from labelmill.operators.miniatures.training.scenes import SIDE, describe
from labelmill.operators.miniatures.world import World
from labelmill.operators.models.card import ModelCard
from labelmill.operators.ontology import Ontology
from labelmill.operators.select import Select

NAMES = (*(f"{colour} {kind}" for kind, colour in pairs("all")), FACE, SIGN)
UNSEEN = frozenset(f"{colour} {kind}" for kind, colour in HELD_OUT)
FLOOR = 0.02
"""Detections with lower scores are not counted."""

_DETECTIONS = pa.schema([pa.field("detections", DETECTIONS)])


def evaluate(card: ModelCard, scenes: int = 1000) -> dict[str, float]:
    """Ask for all that is in a scene and as many things that are not; suppress double boxes as `select` does.

    Average precision counts detections of all scores, so the rule about boxes that contain others is off: at scores of
    0.02 what they contain is noise. Classes are colour and kind: a red car found where a blue car is asked for is
    wrong. Precision and recall are those of detections that reach the default score of `select`, at IoU 0.5.

    Args:
        card: The detector.
        scenes: How many scenes of 320 × 320 pixels, of seen and held-out pairs.

    Returns:
        ``ap50`` and ``ap`` (IoU 0.50:0.95) of the pairs that training saw, faces and signs; ``ap50_held_out`` and
        ``ap_held_out`` of the held-out pairs; ``precision`` and ``recall``.
    """
    world = World(SEED, SIDE, words="held_out")
    engine = GroundingDino(card)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for index in range(scenes):
        scene = world.scene(index)
        _, things = describe(scene)
        asked = _ask({thing.name for thing in things}, np.random.default_rng([SEED, index]))
        for thing in things:
            label = {"image_id": index + 1, "category_id": NAMES.index(thing.name) + 1}
            truth.append({**label, "bbox": bbox(*thing.box)})
        for detection in _detect(engine, scene.pixels, asked):
            label = {"image_id": index + 1, "category_id": NAMES.index(detection["class"]) + 1}
            box = bbox(*(detection[side] for side in ("x1", "y1", "x2", "y2")))
            found.append({**label, "bbox": box, "score": detection["score"]})
    scores = average_precision(truth, found, range(1, scenes + 1), NAMES)
    unseen = np.array([name in UNSEEN for name in NAMES])
    least = Select.Params().score
    chosen = [each for each in found if each["score"] >= least]
    pairs = len(match(truth, chosen))
    return {
        "ap50": float(np.nanmean(scores.ap50[~unseen])),
        "ap": float(np.nanmean(scores.ap[~unseen])),
        "ap50_held_out": float(np.nanmean(scores.ap50[unseen])),
        "ap_held_out": float(np.nanmean(scores.ap[unseen])),
        "precision": pairs / max(1, len(chosen)),
        "recall": pairs / max(1, len(truth)),
    }


def _ask(present: set[str], rng: np.random.Generator) -> list[str]:
    absent = [name for name in NAMES if name not in present]
    return sorted(present) + [absent[i] for i in rng.permutation(len(absent))[: max(1, len(present))]]


def _detect(engine: GroundingDino, pixels: np.ndarray, asked: Sequence[str]) -> list[dict[str, Any]]:
    """What `detect` and `select` give."""
    given = engine.ask(Ontology.model_validate(list(asked)))
    item = Item(engine.prepare(pixels), pixels.shape[1], pixels.shape[0])
    image = Found(item, FLOOR, 300)
    for answer in engine.detect([item.given]):
        image.add(answer, 0)
    result = image.result(given, [])
    if isinstance(result, Exception):
        raise result
    table = pa.Table.from_pylist([result], schema=_DETECTIONS)
    chosen = Select(Select.Params(score=0, containment=None)).compute(table).columns
    assert chosen is not None
    detections: list[dict[str, Any]] = chosen.column("detections")[0].as_py()
    return detections
